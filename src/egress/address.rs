//! What kind of address an address is. Pure.
//!
//! Only public ones are reached without the operator's wish. An address that carries another one –
//! IPv4-mapped, 6to4, NAT64 – is of the kind of that one, and what is not known to be public is
//! not public.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Kinds of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Of the internet.
    Public,
    /// Of this machine.
    Loopback,
    /// Of a private network.
    Private,
    /// Of the network that a provider shares between its customers.
    Shared,
    /// Of the link: of neighbours.
    LinkLocal,
    /// Of a cloud's service that tells its machines their secrets.
    Metadata,
    /// No address at all.
    Unspecified,
    /// Of many.
    Multicast,
    /// Set aside for documents, measurements, tunnels or later.
    Reserved,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::Shared => "an address of a provider's own network",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "the address of a cloud's metadata service",
            Self::Unspecified => "the unspecified address",
            Self::Multicast => "a multicast address",
            Self::Reserved => "a reserved address",
        })
    }
}

/// Services of clouds at addresses that are no link-local ones, or not only that.
const METADATA_V4: [[u8; 4]; 4] =
    [[169, 254, 169, 254], [168, 63, 129, 16], [100, 100, 100, 200], [192, 0, 0, 192]];
const METADATA_V6: [[u16; 8]; 1] = [[0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254]];

/// The address that a connection is made to: the IPv4 one where it is mapped into IPv6.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// What kind of address it is.
pub(super) fn class(address: IpAddr) -> Class {
    match canonical(address) {
        IpAddr::V4(four) => class_v4(four),
        IpAddr::V6(six) => class_v6(six),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    let octets = address.octets();
    if METADATA_V4.contains(&octets) {
        return Class::Metadata;
    }
    match octets {
        [0, 0, 0, 0] => Class::Unspecified,
        [127, ..] => Class::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Class::Private,
        [100, 64..=127, ..] => Class::Shared,
        [169, 254, ..] => Class::LinkLocal,
        [224..=239, ..] => Class::Multicast,
        [0, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => Class::Reserved,
        _ => Class::Public,
    }
}

fn class_v6(address: Ipv6Addr) -> Class {
    let segments = address.segments();
    if METADATA_V6.contains(&segments) {
        return Class::Metadata;
    }
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        class_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // NAT64, by which a host with IPv6 alone reaches the others; 6to4; IPv4-compatible ones.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        [0, 0, 0, 0, 0, 0, high, low] => match embedded(high, low) {
            Class::Public => Class::Reserved,
            class => class,
        },
        [0xfc00..=0xfdff, ..] => Class::Private,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xff00..=0xffff, ..] => Class::Multicast,
        // Teredo and what else is not of hosts; documents.
        [0x2001, 0..=0x01ff, ..] | [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => {
            Class::Reserved
        }
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Reserved,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Class {
        class(text.parse().unwrap())
    }

    #[test]
    fn each_kind_is_known() {
        for (address, expected) in [
            ("8.8.8.8", Class::Public),
            ("172.15.0.1", Class::Public),
            ("172.32.0.1", Class::Public),
            ("100.63.0.1", Class::Public),
            ("2606:4700::1", Class::Public),
            ("2002:808:808::1", Class::Public),
            ("64:ff9b::8.8.8.8", Class::Public),
            ("127.255.0.1", Class::Loopback),
            ("::1", Class::Loopback),
            ("::ffff:127.0.0.1", Class::Loopback),
            ("::127.0.0.1", Class::Loopback),
            ("64:ff9b::127.0.0.1", Class::Loopback),
            ("2002:7f00:1::1", Class::Loopback),
            ("10.0.0.1", Class::Private),
            ("172.16.0.1", Class::Private),
            ("192.168.1.1", Class::Private),
            ("fd12::1", Class::Private),
            ("64:ff9b::10.0.0.1", Class::Private),
            ("2002:a00:1::", Class::Private),
            ("100.64.0.1", Class::Shared),
            ("169.254.1.1", Class::LinkLocal),
            ("fe80::1", Class::LinkLocal),
            ("169.254.169.254", Class::Metadata),
            ("::ffff:169.254.169.254", Class::Metadata),
            ("2002:a9fe:a9fe::", Class::Metadata),
            ("fd00:ec2::254", Class::Metadata),
            ("168.63.129.16", Class::Metadata),
            ("0.0.0.0", Class::Unspecified),
            ("::", Class::Unspecified),
            ("224.0.0.1", Class::Multicast),
            ("ff02::1", Class::Multicast),
            ("255.255.255.255", Class::Reserved),
            ("0.1.2.3", Class::Reserved),
            ("198.18.0.1", Class::Reserved),
            ("203.0.113.9", Class::Reserved),
            ("::8.8.8.8", Class::Reserved),
            ("2001::1", Class::Reserved),
            ("2001:db8::1", Class::Reserved),
            ("64:ff9b:1::1", Class::Reserved),
            ("100::1", Class::Reserved),
            ("fec0::1", Class::Reserved),
            ("4000::1", Class::Reserved),
        ] {
            assert_eq!(of(address), expected, "{address}");
        }
    }

    proptest! {
        #[test]
        fn what_the_library_knows_to_be_local_is_never_public(bits: u32) {
            let four = Ipv4Addr::from_bits(bits);
            let is_local = four.is_private() || four.is_loopback() || four.is_link_local()
                || four.is_multicast() || four.is_broadcast() || four.is_unspecified()
                || four.is_documentation();
            let found = class(IpAddr::V4(four));
            prop_assert!(!is_local || found != Class::Public);
            // Whatever it is wrapped in.
            let [a, b, c, d] = four.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for six in [
                four.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            ] {
                prop_assert!(found == Class::Public || class(IpAddr::V6(six)) != Class::Public);
            }
        }

        #[test]
        fn an_ipv6_address_is_public_only_where_such_are_given_out(bits: u128) {
            let six = Ipv6Addr::from_bits(bits);
            let is_global = six.segments()[0] >> 13 == 1 || six.to_ipv4_mapped().is_some()
                || bits >> 32 == 0x0064_ff9b_0000_0000_0000_0000;
            prop_assert!(class(IpAddr::V6(six)) != Class::Public || is_global);
        }
    }
}
