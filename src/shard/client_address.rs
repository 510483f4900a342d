//! Who a client behind proxies is, by the headers they add. Each proxy appends whom it saw, so the list is read from its end: the
//! first address that is no proxy of ours is the client, and what stands before it anybody may have written.

use crate::config::{AddressHeader, Networks};
use crate::websocket::Head;
use std::net::{IpAddr, SocketAddr};

/// The client's address as `head` tells it, which came from a peer in `trusted`; none if it doesn't tell. If all it names are
/// proxies of ours, the farthest. O(length of the headers), which the head's bound limits.
pub fn from_headers(head: &Head<'_>, header: AddressHeader, trusted: &Networks) -> Option<IpAddr> {
    let forwarded = || {
        // Several headers are one list (RFC 9110 §5.3).
        let lines: Vec<&[u8]> = head.values("X-Forwarded-For").collect();
        let mut farthest = None;
        for element in lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
            // Beyond what can't be read nobody vouches for anything.
            let Some(address) = address(element) else { break };
            farthest = Some(address);
            if !trusted.contains(address) {
                break;
            }
        }
        farthest
    };
    let real = || head.values("X-Real-IP").last().and_then(address);
    match header {
        // Who sends the one header says nothing by the other: what can't be read names nobody.
        AddressHeader::Either if head.header("X-Forwarded-For").is_some() => forwarded(),
        AddressHeader::Either => real(),
        AddressHeader::XForwardedFor => forwarded(),
        AddressHeader::XRealIp => real(),
        AddressHeader::None => None,
    }
}

/// An address, with or without a port; IPv6 with or without brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let address = text.parse().ok().or_else(|| text.parse().ok().map(|a: SocketAddr| a.ip()));
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    address.or_else(in_brackets).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(header: AddressHeader, headers: &[(&str, &str)]) -> Option<String> {
        let trusted = Networks::new(&["10.0.0.0/8".to_owned(), "::1".to_owned()]);
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        from_headers(&Head { headers, ..Head::default() }, header, &trusted).map(|a| a.to_string())
    }

    fn forwarded(list: &str) -> Option<String> {
        told(AddressHeader::XForwardedFor, &[("x-forwarded-for", list)])
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
        assert_eq!(forwarded("192.0.2.1").unwrap(), "192.0.2.1");
        assert_eq!(forwarded("192.0.2.1, 10.0.0.1,10.0.0.2").unwrap(), "192.0.2.1");
        assert_eq!(
            forwarded("6.6.6.6, 192.0.2.1, 10.0.0.1").unwrap(),
            "192.0.2.1",
            "what a client made up is not believed"
        );
        assert_eq!(forwarded("10.0.0.9, 10.0.0.1").unwrap(), "10.0.0.9");
        let several =
            [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.1, 10.0.0.1"), ("x-forwarded-for", "::1")];
        assert_eq!(told(AddressHeader::Either, &several).unwrap(), "192.0.2.1");
    }

    #[test]
    fn ports_brackets_and_mapped_addresses_are_read() {
        for (text, address) in [
            ("192.0.2.1:4000", "192.0.2.1"),
            ("[2001:db8::1]:4000", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            (" ::ffff:192.0.2.1 ", "192.0.2.1"),
        ] {
            assert_eq!(forwarded(text).unwrap(), address, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        for text in ["", "unknown", "_hidden", "192.0.2.1, unknown", "192.0.2.1,", "192.0.2.256", "[::1"] {
            assert_eq!(forwarded(text), None, "{text}");
        }
        assert_eq!(forwarded("192.0.2.1, unknown, 10.0.0.1").unwrap(), "10.0.0.1");
    }

    #[test]
    fn only_the_header_that_was_chosen_is_believed() {
        let both = [("X-Real-IP", "192.0.2.2"), ("X-Forwarded-For", "192.0.2.1")];
        let by = |header| told(header, &both);
        assert_eq!(by(AddressHeader::Either).unwrap(), "192.0.2.1");
        assert_eq!(by(AddressHeader::XForwardedFor).unwrap(), "192.0.2.1");
        assert_eq!(by(AddressHeader::XRealIp).unwrap(), "192.0.2.2");
        assert_eq!(by(AddressHeader::None), None);
        assert_eq!(told(AddressHeader::Either, &both[..1]).unwrap(), "192.0.2.2");
        let unreadable = [both[0], ("X-Forwarded-For", "192.0.2.1, unknown")];
        assert_eq!(told(AddressHeader::Either, &unreadable), None, "the other header does not stand in");
        assert_eq!(told(AddressHeader::XForwardedFor, &both[..1]), None);
    }
}
