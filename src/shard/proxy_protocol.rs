//! The PROXY protocol's header (haproxy's doc/proxy-protocol.txt), versions 1 and 2, as a pure function over bytes: who a
//! proxy in front says that its client is.
//!
//! ```text
//! 1  PROXY TCP4 192.0.2.1 203.0.113.9 40000 80\r\n                                  at most 107 bytes
//! 2  0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A | 2·command | family·transport | length 16 | addresses, ports | TLVs
//! ```
//!
//! Believed only from addresses that are known to be proxies, so that who must send it, and who must not, is never guessed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header taken, extensions (TLVs) included. They are skipped; real ones are far below.
pub const HEADER_BYTES_MAX: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Before the addresses of version 2.
const FIXED_BYTES: usize = 16;

/// Longest line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;

/// It is no such header; whoever sent it is no proxy that we can work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a PROXY protocol header: {0}")]
pub struct Malformed(pub &'static str);

/// Reads the header at the start of `input`: its length in bytes and the client's address, none if the proxy speaks for itself
/// (a health check) or doesn't say; `None` if it is not whole yet. O(length), without allocation.
///
/// # Errors
/// It is none, or over [`HEADER_BYTES_MAX`].
pub fn parse(input: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Malformed> {
    let begins = |with: &[u8]| input.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        return version_2(input);
    }
    if begins(b"PROXY ") {
        return version_1(input);
    }
    Err(Malformed("it begins otherwise"))
}

fn version_2(input: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Malformed> {
    let Some(&[version_command, family_transport, high, low]) = input.get(SIGNATURE.len()..FIXED_BYTES) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED_BYTES + length > HEADER_BYTES_MAX {
        return Err(Malformed("it is too long"));
    }
    let is_local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("its version or command is unknown")),
    };
    let needed = match family_transport {
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        // The proxy's own connection says nothing of a family.
        _ if is_local => 0,
        _ => return Err(Malformed("its family or transport is unknown")),
    };
    if length < needed && !is_local {
        return Err(Malformed("it is shorter than its addresses"));
    }
    let Some(body) = input.get(FIXED_BYTES..FIXED_BYTES + length) else { return Ok(None) };
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let source = match family_transport >> 4 {
        _ if is_local => None,
        1 => {
            let address: [u8; 4] = body[..4].try_into().expect("four bytes");
            Some(SocketAddr::from((Ipv4Addr::from(address), port(8))))
        }
        2 => {
            let address: [u8; 16] = body[..16].try_into().expect("sixteen bytes");
            Some(SocketAddr::from((Ipv6Addr::from(address), port(32))))
        }
        _ => None,
    };
    Ok(Some((FIXED_BYTES + length, source)))
}

fn version_1(input: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Malformed> {
    let window = &input[..input.len().min(LINE_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() < LINE_BYTES_MAX { Ok(None) } else { Err(Malformed("its line does not end")) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| Malformed("its line is not text"))?;
    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(Some((end + 2, None)));
    }
    let mut address = || words.next().and_then(|word| word.parse::<IpAddr>().ok());
    let (source, destination) = (address(), address());
    let mut port = || words.next().and_then(|word| word.parse::<u16>().ok());
    let (source_port, destination_port) = (port(), port());
    let (Some(source), Some(destination), Some(port), Some(_), None) =
        (source, destination, source_port, destination_port, words.next())
    else {
        return Err(Malformed("its line names no addresses and ports"));
    };
    let is_family = |of: IpAddr| match family {
        "TCP4" => of.is_ipv4(),
        "TCP6" => of.is_ipv6(),
        _ => false,
    };
    if !is_family(source) || !is_family(destination) {
        return Err(Malformed("its addresses are not of its family"));
    }
    Ok(Some((end + 2, Some(SocketAddr::new(source, port)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[version_command, family], &length, body].concat()
    }

    fn v4(tail: &[u8]) -> Vec<u8> {
        header(0x21, 0x11, &[&[192, 0, 2, 1, 203, 0, 113, 9, 0x9c, 0x40, 0, 80], tail].concat())
    }

    #[test]
    fn both_versions_name_the_client() {
        let client = "192.0.2.1:40000".parse().unwrap();
        assert_eq!(parse(&v4(b"")), Ok(Some((28, Some(client)))));
        assert_eq!(parse(&[v4(b"\x03\0\x04abcd"), b"GET /".to_vec()].concat()), Ok(Some((35, Some(client)))));
        let line = b"PROXY TCP4 192.0.2.1 203.0.113.9 40000 80\r\n";
        assert_eq!(parse(&[line, &b"GET /"[..]].concat()), Ok(Some((line.len(), Some(client)))));
        let client6 = "[2001:db8::1]:40000".parse().unwrap();
        let six: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let body = [&six.octets()[..], &[0; 16], &[0x9c, 0x40, 0, 80]].concat();
        assert_eq!(parse(&header(0x21, 0x21, &body)), Ok(Some((52, Some(client6)))));
        let line = b"PROXY TCP6 2001:db8::1 ::1 40000 80\r\n";
        assert_eq!(parse(line), Ok(Some((line.len(), Some(client6)))));
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_names_nobody() {
        for (header, length) in [
            (header(0x20, 0x00, b""), 16),
            (header(0x20, 0x11, &[0; 12]), 28),
            (header(0x20, 0xff, &[7; 5]), 21),
            (header(0x21, 0x00, b"tlv"), 19),
            (header(0x21, 0x31, &[b'x'; 216]), 232),
            (b"PROXY UNKNOWN\r\n".to_vec(), 15),
            (b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n".to_vec(), 31),
        ] {
            assert_eq!(parse(&header), Ok(Some((length, None))), "{header:?}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused_at_once() {
        let long = (HEADER_BYTES_MAX - FIXED_BYTES + 1) as u16;
        let mut too_long = header(0x21, 0x11, &[]);
        too_long[14..16].copy_from_slice(&long.to_be_bytes());
        for bad in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"\x16\x03\x01".to_vec(),
            b"proxy TCP4".to_vec(),
            header(0x11, 0x11, &[0; 12]),
            header(0x22, 0x11, &[0; 12]),
            header(0x21, 0x11, &[0; 11]),
            header(0x21, 0x21, &[0; 35]),
            header(0x21, 0x13, &[0; 12]),
            header(0x21, 0x41, &[0; 216]),
            too_long,
            b"PROXY TCP4 192.0.2.1 203.0.113.9 40000\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 203.0.113.9 40000 80 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 203.0.113.9 40000 99999\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.1 203.0.113.9 1 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 203.0.113.9 1 2\r\n".to_vec(),
            b"PROXY \r\n".to_vec(),
            [b"PROXY TCP4 ".to_vec(), vec![b' '; 200]].concat(),
            b"PROXY TCP4 \xff 203.0.113.9 1 2\r\n".to_vec(),
        ] {
            assert!(parse(&bad).is_err(), "{:?}", String::from_utf8_lossy(&bad));
        }
    }

    proptest! {
        #[test]
        fn a_header_is_whole_at_its_last_byte_and_not_before(tail in proptest::collection::vec(any::<u8>(), 0..50)) {
            for header in [v4(&tail), b"PROXY TCP4 192.0.2.1 203.0.113.9 40000 80\r\n".to_vec()] {
                for cut in 0..header.len() {
                    prop_assert_eq!(parse(&header[..cut]), Ok(None), "{}", cut);
                }
                prop_assert!(matches!(parse(&header), Ok(Some((n, Some(_)))) if n == header.len()));
            }
        }

        #[test]
        fn any_bytes_are_an_answer_within_their_bounds(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            start in 0usize..4,
        ) {
            let starts = [&b""[..], SIGNATURE, b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"];
            let bytes = [starts[start], &bytes].concat();
            match parse(&bytes) {
                Ok(Some((used, _))) => prop_assert!(used <= bytes.len() && used <= HEADER_BYTES_MAX),
                Ok(None) => prop_assert!(bytes.len() < HEADER_BYTES_MAX),
                Err(_) => {}
            }
        }
    }
}
