//! The `with_…` functions of settings, written once.

/// Writes the `with_…` functions of a struct of settings; `some` marks a field that is an
/// `Option`.
macro_rules! setters {
    ($type:ident { $($entries:tt)* }) => {
        impl $type { setters!(@next $($entries)*); }
    };
    (@next) => {};
    (@next $setter:ident: $field:ident = some $kind:ty, $($rest:tt)*) => {
        #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        #[must_use]
        pub fn $setter(mut self, $field: impl Into<$kind>) -> Self {
            self.$field = Some($field.into());
            self
        }
        setters!(@next $($rest)*);
    };
    (@next $setter:ident: $field:ident = $kind:ty, $($rest:tt)*) => {
        #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        #[must_use]
        pub fn $setter(mut self, $field: $kind) -> Self {
            self.$field = $field;
            self
        }
        setters!(@next $($rest)*);
    };
}
