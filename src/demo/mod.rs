//! The page of `GET /demo` and what it loads, in the binary: a gateway shows itself without anything else on the machine.
//!
//! Nothing here is made anew for a request. The page's own parts are index.html, demo.css and demo.js; centrifuge.js is the
//! unchanged client library that it subscribes with, under the MIT licence beside it.

/// A file that a browser may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its path: [`PATH`] or below.
    pub path: &'static str,
    /// Content-Type.
    pub content_type: &'static str,
    /// As it is sent.
    pub body: &'static str,
}

/// Where the page is. Its parts are below; they name each other relatively, so that a proxy may put a prefix before all.
pub const PATH: &str = "/demo";

/// Where its echo is.
pub const ECHO_PATH: &str = "/demo/ws";

/// What its pages may do, as Content-Security-Policy says it to the browser: nothing but load each other and speak to this gateway.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
     connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Every file, the page first.
pub static PAGES: [Page; 5] = [
    Page { path: PATH, content_type: "text/html; charset=utf-8", body: include_str!("index.html") },
    Page { path: "/demo/demo.css", content_type: "text/css; charset=utf-8", body: include_str!("demo.css") },
    Page { path: "/demo/demo.js", content_type: "text/javascript; charset=utf-8", body: include_str!("demo.js") },
    Page {
        path: "/demo/centrifuge.js",
        content_type: "text/javascript; charset=utf-8",
        body: include_str!("centrifuge.js"),
    },
    Page {
        path: "/demo/centrifuge.LICENSE.txt",
        content_type: "text/plain; charset=utf-8",
        body: include_str!("centrifuge.LICENSE.txt"),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_only_what_is_served() {
        let html = PAGES[0].body;
        let named: Vec<_> = html
            .split(['"', '\''])
            .filter(|word| word.ends_with(".js") || word.ends_with(".css") || word.contains("://"))
            .collect();
        assert_eq!(named, ["http://www.w3.org/2000/svg", "demo/demo.css", "demo/centrifuge.js", "demo/demo.js"]);
        for name in &named[1..] {
            assert!(PAGES.iter().any(|page| page.path == format!("/{name}")), "{name}");
        }
        for page in &PAGES {
            assert!(page.path.starts_with(PATH) && page.path != ECHO_PATH);
        }
    }

    #[test]
    fn nothing_of_the_page_is_against_its_own_policy() {
        let html = PAGES[0].body;
        assert!(!html.contains(" style=") && !html.contains("<style") && !html.contains(" onclick="));
        assert!(html.matches("<script").count() == html.matches("<script src=").count());
        for page in &PAGES[1..3] {
            let text = page.body;
            assert!(!text.contains("://") && !text.contains("eval("), "{}", page.path);
        }
    }
}
