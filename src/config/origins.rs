//! Whose pages may connect: the browser names the page's origin, and we say whether it is welcome (RFC 6455 §10.2).
//!
//! It keeps other people's pages from using our visitors' browsers; a program may send any Origin, or none.

/// One origin that may connect, or many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// All.
    Any,
    /// Pages without an origin to speak of: files, sandboxed frames.
    Null,
    /// One, or all subdomains of a host.
    Host {
        /// In lower case.
        scheme: String,
        /// In lower case; of subdomains, what follows the `*`, beginning with a dot.
        host: String,
        /// Without the scheme's own.
        port: Option<u16>,
        /// Whether `host` is the end of a longer one.
        subdomains: bool,
    },
}

/// Scheme, host and port of an origin (RFC 6454 §6.2), in lower case and without the scheme's own port.
fn parts(origin: &str) -> Option<(String, String, Option<u16>)> {
    let (scheme, authority) = origin.split_once("://")?;
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (host, port) = host_and_port(authority)?;
    if !is_scheme {
        return None;
    }
    let scheme = scheme.to_ascii_lowercase();
    let own = match scheme.as_str() {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    Some((scheme, host, port.filter(|port| Some(*port) != own)))
}

/// Host, in lower case, and port of `example.com:443` or `[::1]:443`.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    let port = match rest.strip_prefix(':') {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().ok()?),
        None if rest.is_empty() => None,
        _ => return None,
    };
    let is_host = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@,\\".contains(&b));
    is_host.then(|| (host.to_ascii_lowercase(), port))
}

impl OriginPattern {
    /// `https://example.com`, `https://*.example.com`, `null` or `*`.
    pub fn parse(text: &str) -> Option<OriginPattern> {
        match text {
            "*" => return Some(OriginPattern::Any),
            "null" => return Some(OriginPattern::Null),
            _ => {}
        }
        let (scheme, host, port) = parts(text)?;
        let (host, subdomains) = match host.strip_prefix('*') {
            Some(rest) if rest.starts_with('.') && rest.len() > 1 => (rest.to_owned(), true),
            _ => (host, false),
        };
        (!host.contains('*')).then_some(OriginPattern::Host { scheme, host, port, subdomains })
    }

    fn matches(&self, origin: &str) -> bool {
        match self {
            OriginPattern::Any => true,
            OriginPattern::Null => origin == "null",
            OriginPattern::Host { scheme, host, port, subdomains } => parts(origin).is_some_and(|(s, h, p)| {
                let is_host = if *subdomains { h.len() > host.len() && h.ends_with(host) } else { h == *host };
                is_host && s == *scheme && p == *port
            }),
        }
    }
}

/// The origins that may connect by one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<OriginPattern>);

impl Origins {
    /// From a validated list; what is no pattern is left out. Empty: only the host that is asked.
    pub fn new(texts: &[String]) -> Origins {
        Origins(texts.iter().filter_map(|text| OriginPattern::parse(text)).collect())
    }

    /// Whether `origin` is in the list; nothing is in an empty one.
    pub fn name(&self, origin: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(origin))
    }

    /// Whether a page of `origin` may connect to us under the name `host`, both as in the headers.
    pub fn allow(&self, origin: &str, host: &str) -> bool {
        if !self.0.is_empty() {
            return self.name(origin);
        }
        let asked = host_and_port(host).map(|(host, _)| host);
        asked.is_some() && parts(origin).map(|(_, host, _)| host) == asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(patterns: &[&str], origin: &str, host: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        assert!(patterns.iter().all(|p| OriginPattern::parse(p).is_some()), "{patterns:?}");
        Origins::new(&patterns).allow(origin, host)
    }

    #[test]
    fn without_patterns_the_host_that_is_asked_may_whatever_the_port_and_scheme() {
        for (origin, host) in [
            ("https://example.com", "example.com"),
            ("http://example.com:8080", "example.com:9992"),
            ("https://EXAMPLE.com", "example.COM"),
            ("http://[::1]:3000", "[::1]:9992"),
            ("http://127.0.0.1", "127.0.0.1:9992"),
        ] {
            assert!(allow(&[], origin, host), "{origin} to {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "example.com"),
            ("https://example.com.evil.example", "example.com"),
            ("https://sub.example.com", "example.com"),
            ("null", "example.com"),
            ("", ""),
            ("null", "null"),
            ("https://", ""),
            ("example.com", "example.com"),
            ("https://example.com@evil.example", "example.com"),
            ("https://example.com/", "example.com"),
            ("http://[::1", "[::1"),
        ] {
            assert!(!allow(&[], origin, host), "{origin} to {host}");
        }
    }

    #[test]
    fn an_exact_origin_is_scheme_host_and_port() {
        let shop = &["https://shop.example"];
        for origin in ["https://shop.example", "https://shop.example:443", "HTTPS://Shop.Example"] {
            assert!(allow(shop, origin, "gateway"), "{origin}");
        }
        for origin in ["http://shop.example", "https://shop.example:8443", "https://a.shop.example", "null", "", "*"] {
            assert!(!allow(shop, origin, "gateway"), "{origin}");
        }
        assert!(!allow(shop, "https://gateway", "gateway"), "a list replaces the host's own");
        assert!(allow(&["https://shop.example:8443"], "https://shop.example:8443", ""));
        assert!(allow(&["https://a.example", "http://b.example"], "http://b.example", ""));
    }

    #[test]
    fn a_wildcard_is_any_depth_of_subdomain_and_not_the_domain_itself() {
        let any = &["https://*.example.com"];
        for origin in ["https://a.example.com", "https://a.b.example.com:443", "https://A.EXAMPLE.com"] {
            assert!(allow(any, origin, "x"), "{origin}");
        }
        for origin in ["https://example.com", "https://.example.com", "https://evilexample.com", "http://a.example.com"]
        {
            assert!(!allow(any, origin, "x"), "{origin}");
        }
        assert!(!allow(any, "https://a.example.com.evil.example", "x"));
    }

    #[test]
    fn a_star_is_everyone_and_null_is_said_by_name() {
        for origin in ["null", "file://", "https://x", "nonsense", ""] {
            assert!(allow(&["*"], origin, "h"), "{origin}");
        }
        assert!(allow(&["null"], "null", "h") && !allow(&["null"], "https://h", "h"));
    }

    #[test]
    fn an_empty_list_names_nobody() {
        let origins = |texts: &[&str]| Origins::new(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert!(!origins(&[]).name("http://127.0.0.1") && !origins(&[]).name("null"));
        assert!(origins(&["https://a.example"]).name("https://a.example") && origins(&["*"]).name("null"));
        assert!(!origins(&["https://a.example"]).name("https://b.example"));
    }

    #[test]
    fn what_is_no_origin_is_no_pattern() {
        for text in [
            "",
            "example.com",
            "https://",
            "https://example.com/",
            "https://*",
            "https://*.",
            "https://a.*.com",
            "**",
            "https://*example.com",
            "https://a:b",
            "https://a:99999",
            "https://a b",
            "://a",
            "https://a,https://b",
        ] {
            assert_eq!(OriginPattern::parse(text), None, "{text}");
        }
    }
}
