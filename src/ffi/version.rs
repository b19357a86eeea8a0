//! Which library this is.

use std::ffi::c_char;

/// The version of the library that is loaded, such as "0.1.0": TE_VERSION if it is the one that
/// the header belongs to. Static text, with a NUL at its end.
#[unsafe(no_mangle)]
pub extern "C" fn te_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The ABI's number: TE_ABI_VERSION of the header that the library was made with. Within one
/// number functions, status codes and, at the end of structs that the library allocates, fields
/// are only added: a program may go on if the library's number is its own header's.
#[unsafe(no_mangle)]
pub extern "C" fn te_abi_version() -> u32 {
    TE_ABI_VERSION
}

/// The ABI that this header describes; see te_abi_version().
pub const TE_ABI_VERSION: u32 = 1;
