//! Networks of IP addresses: which peers are proxies of ours.

use std::net::IpAddr;

/// An address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// `10.0.0.0/8`, `fd00::/8`, or a single address. Bits beyond the length may be anything.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().ok().filter(|bits| *bits <= most)?,
            Some(_) => return None,
        };
        Some(Network { address, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Several networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// From a validated list; what is no network is left out.
    pub fn new(texts: &[String]) -> Networks {
        Networks(texts.iter().filter_map(|text| Network::parse(text)).collect())
    }

    /// Whether `address` is in one of them. An IPv4 address that came in by an IPv6 socket counts as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_the_addresses_that_share_its_leading_bits() {
        let networks = |texts: &[&str]| Networks::new(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let holds = |n: &Networks, address: &str| n.contains(address.parse().unwrap());
        let n = networks(&["10.0.0.0/8", "192.0.2.7", "172.16.5.9/12", "fd00::/8", "2001:db8::1/128"]);
        for inside in ["10.255.0.1", "192.0.2.7", "172.31.0.1", "fd12::1", "2001:db8::1", "::ffff:10.0.0.1"] {
            assert!(holds(&n, inside), "{inside}");
        }
        for outside in ["11.0.0.0", "192.0.2.8", "172.32.0.0", "fe00::", "2001:db8::2", "::1", "::10.0.0.1"] {
            assert!(!holds(&n, outside), "{outside}");
        }
        assert!(holds(&networks(&["0.0.0.0/0"]), "203.0.113.1") && !holds(&networks(&["0.0.0.0/0"]), "::1"));
        assert!(holds(&networks(&["::/0"]), "::1"));
        assert!(!holds(&Networks::default(), "127.0.0.1"));
    }

    #[test]
    fn what_is_no_network_is_not_taken() {
        for text in
            ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-1", "host", "10.0.0.0/8/8"]
        {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }
}
