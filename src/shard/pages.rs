//! Plain pages of the subscriber port, answered over HTTP to whoever asks without an upgrade.
//!
//! To add one that is part of the binary, add a line to [`PAGES`].

use crate::queue;

/// A page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Exact path, without the listener's prefix.
    pub path: &'static str,
    /// Where its content comes from.
    pub content: Content,
}

/// Where a page's content comes from.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// It is part of the binary: no client costs a copy.
    Static {
        /// Content-Type.
        content_type: &'static str,
        /// The body; empty or not, of any length.
        body: &'static [u8],
    },
    /// The control core knows it.
    Asked(queue::Page),
}

/// Every page.
pub static PAGES: &[Page] = &[
    Page { path: "/stats", content: Content::Asked(queue::Page::Stats) },
    Page { path: "/metrics", content: Content::Asked(queue::Page::Metrics) },
];
