//! What the subscriber port says to a request for a path without a dialect: a page of the demo, or that nothing is there.
//!
//! A page is an answer like a refusal: the last words of its connection. Browsers open another one for the next.

use crate::demo::CONTENT_SECURITY_POLICY;
use crate::shard::settings::ShardSettings;
use crate::websocket::Head;
use crate::websocket::handshake::Rejection;

/// The answer, which is never a 101.
pub(super) fn answer(settings: &ShardSettings, listener: u16, head: &Head<'_>) -> Rejection {
    let Some(page) = settings.page(listener, head.path) else {
        return Rejection::new(404, "no WebSocket is served at this path\n");
    };
    if head.method != "GET" {
        return Rejection::new(405, "a page can only be read\n").with_header("Allow", "GET");
    }
    Rejection { content_type: page.content_type, ..Rejection::new(200, page.body) }
        // A newer gateway may have newer pages.
        .with_header("Cache-Control", "no-cache")
        .with_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        .with_header("X-Content-Type-Options", "nosniff")
}
