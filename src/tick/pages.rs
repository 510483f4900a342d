//! Plain pages for clients that ask without an upgrade: one answer with its length, then a clean close.
//!
//! ```text
//! GET, HEAD ─┬─► part of the binary ─────────────► head and body owed ─► the last words leave ─► linger
//!            └─► the control core knows ─► Asking ─────────▲
//! ```
//!
//! A body leaves in sends of at most `send_bytes_max`, each a share of the same bytes. Whoever takes nothing for
//! `slow_deadline_ms` is cut. Bodies made for one client are bounded in number.

use super::Reactor;
use crate::ids::Slot;
use crate::queue::Question;
use crate::shard::pages::{Content, Page};
use crate::socket::Ring;
use crate::websocket::handshake::{self, Rejection};
use bytes::Bytes;

/// Clients of a shard that have asked for a page of the control core's and are not gone: each may hold a copy of it.
pub(super) const ASKING_MAX: usize = 64;

/// What a connection has to do with pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing.
    #[default]
    None,
    /// A page that is part of the binary.
    Static,
    /// A page of the control core's.
    Asked,
    /// Its head alone.
    AskedHead,
}

impl<R: Ring> Reactor<R> {
    /// Answers the request for `page`; `head`: without its body.
    pub(super) fn serve_page(&mut self, slot: Slot, page: Page, head: bool) {
        let index = slot.0 as usize;
        match page.content {
            Content::Static { content_type, body } => {
                self.visitors[index].reading = Reading::Static;
                self.send_page(slot, 200, content_type, &Bytes::from_static(body), head);
            }
            Content::Asked(_) if self.pages_asked >= ASKING_MAX => {
                self.metrics.questions_refused.add(1);
                self.reply.clear();
                let rejection = Rejection::new(503, "too many ask for this at once: try again in a moment\n");
                rejection.with_header("Retry-After", "1").write(&mut self.reply);
                self.connections[index].egress.reply(&self.reply, &mut self.spares);
                self.say_last_words(slot);
            }
            Content::Asked(page) => {
                self.pages_asked += 1;
                self.visitors[index].reading = if head { Reading::AskedHead } else { Reading::Asked };
                self.ask_first(slot, Question::Page(page));
            }
        }
    }

    /// The page is here.
    pub(super) fn answer_page(&mut self, slot: Slot, status: u16, content_type: &str, body: &Bytes) {
        let head = self.visitors[slot.0 as usize].reading == Reading::AskedHead;
        self.send_page(slot, status, content_type, body, head);
    }

    fn send_page(&mut self, slot: Slot, status: u16, content_type: &str, body: &Bytes, head: bool) {
        self.metrics.pages.add(1);
        self.reply.clear();
        handshake::write_page_head(&mut self.reply, status, content_type, body.len());
        let egress = &mut self.connections[slot.0 as usize].egress;
        egress.reply(&self.reply, &mut self.spares);
        if !head {
            egress.page(body.clone(), &mut self.spares);
        }
        self.say_last_words(slot);
        self.page_moved(slot);
    }

    /// A reader of a page has taken some of it, and may take its time for the next piece.
    pub(super) fn page_moved(&mut self, slot: Slot) {
        let index = slot.0 as usize;
        if self.visitors[index].reading != Reading::None && !self.connections[index].egress.is_empty() {
            self.connections[index].deadline = self.wheel.after(self.now, self.settings.slow_deadline_ms);
            self.schedule(slot);
        }
    }

    /// A reader is gone.
    pub(super) fn page_closed(&mut self, reading: Reading) {
        self.pages_asked -= usize::from(matches!(reading, Reading::Asked | Reading::AskedHead));
    }
}
