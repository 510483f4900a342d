//! Pages in browsers: one that anybody may visit can make the visitor's browser POST to ports that only the visitor reaches, loopback's
//! above all ("simple" requests of the Fetch standard need nobody's leave). Where no token is asked for, that would be publishing.
//!
//! A browser says whose page it is: `Origin` with every POST, and `Sec-Fetch-Site` besides. What sends neither is no page. The name in
//! `Host` proves nothing: a page's own name can be made to mean 127.0.0.1.

use super::Tokens;
use super::http::{TEXT, answer, discard};
use crate::config::Origins;
use crate::metrics::ControlMetrics;
use axum::body::Body;
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;

/// In place of an origin that is missing or no text: only `*` matches it.
const UNNAMED: &str = "";

/// Whether a request may go on: not a page's, of a page that is allowed, with a token to show, or of a method that publishes nothing
/// and whose answer no page gets to read.
pub(super) fn may_ask(origins: &Origins, tokens: &Tokens, method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let is_harmless = matches!(*method, Method::GET | Method::HEAD);
    let asks_for_key = tokens.required() || path.starts_with("/api/") && tokens.api_keys().is_some();
    if is_harmless || asks_for_key {
        return true;
    }
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    match headers.get(ORIGIN) {
        Some(origin) => origins.name(origin.to_str().unwrap_or(UNNAMED)),
        None => matches!(site, None | Some(b"same-origin" | b"none")) || origins.name(UNNAMED),
    }
}

/// Counts it and says why not.
pub(super) async fn refuse(metrics: &ControlMetrics, body: Body) -> Response {
    metrics.refused_origin.add(1);
    discard(body).await;
    let why = "pages of this origin may not publish here: name it in publish.allowed_origins\n";
    answer(StatusCode::FORBIDDEN, TEXT, why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(allowed: &[&str], method: Method, headers: &[(&'static str, &str)]) -> bool {
        let origins = Origins::new(&allowed.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        may_ask(&origins, &Tokens::none(), &method, "/push/all", &headers)
    }

    #[test]
    fn a_page_may_publish_only_if_it_is_in_the_list_and_programs_are_not_asked() {
        let page = [("origin", "https://a.example"), ("sec-fetch-site", "cross-site")];
        for (allowed, may) in
            [(&[][..], false), (&["https://b.example"], false), (&["https://a.example"], true), (&["*"], true)]
        {
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::OPTIONS] {
                assert_eq!(asked(allowed, method, &page), may, "{allowed:?}");
            }
            assert!(asked(allowed, Method::POST, &[]), "a program");
            assert!(asked(allowed, Method::POST, &[("sec-fetch-site", "none")]), "whoever sits there");
            assert!(asked(allowed, Method::GET, &page), "nothing is published by a GET");
        }
    }

    #[test]
    fn the_own_host_a_null_origin_and_a_missing_one_open_nothing() {
        for headers in [
            &[("origin", "http://127.0.0.1:10068"), ("host", "127.0.0.1:10068"), ("sec-fetch-site", "same-origin")][..],
            &[("origin", "null")],
            &[("origin", "")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
        ] {
            assert!(!asked(&[], Method::POST, headers), "{headers:?}");
            assert!(!asked(&["https://a.example"], Method::POST, headers), "{headers:?}");
            assert!(asked(&["*"], Method::POST, headers), "{headers:?}");
        }
        assert!(asked(&["null"], Method::POST, &[("origin", "null")]));
    }
}
