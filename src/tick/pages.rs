//! Plain pages for clients that ask without an upgrade: one answer with its length, then a clean close.
//!
//! ```text
//! GET, HEAD ─┬─► part of the binary ─────────────► head and body owed ─► the last words leave ─► linger
//!            └─► the control core knows ─► Asking ─────────▲
//! ```
//!
//! A body leaves in sends of at most `send_bytes_max`, each a share of the same bytes. Whoever takes nothing for
//! `slow_deadline_ms` is cut. Questions for pages are bounded in number, and so are those who read an answer: each may hold a body
//! that is nobody else's any more.

use super::Reactor;
use crate::ids::Slot;
use crate::queue::Question;
use crate::shard::pages::{Content, Page};
use crate::socket::Ring;
use crate::websocket::handshake::{self, Rejection};
use bytes::Bytes;

/// Clients of a shard that wait for a page of the control core's.
pub(super) const ASKING_MAX: usize = 64;

/// Clients of a shard that wait for one or have one and are not gone.
pub(super) const READING_MAX: usize = 1024;

/// Clients of a shard with a page of the control core's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Readers {
    /// Those that wait for it.
    asking: usize,
    /// All of them.
    all: usize,
}

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
    /// A page of the control core's, which has answered.
    Answered,
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
            Content::Asked(_) if self.readers.asking >= ASKING_MAX || self.readers.all >= READING_MAX => {
                self.metrics.questions_refused.add(1);
                self.reply.clear();
                let rejection = Rejection::new(503, "too many ask for this at once: try again in a moment\n");
                rejection.with_header("Retry-After", "1").write(&mut self.reply);
                self.connections[index].egress.reply(&self.reply, &mut self.spares);
                self.say_last_words(slot);
            }
            Content::Asked(page) => {
                self.readers.asking += 1;
                self.readers.all += 1;
                self.visitors[index].reading = if head { Reading::AskedHead } else { Reading::Asked };
                self.ask_first(slot, Question::Page(page));
            }
        }
    }

    /// The page is here.
    pub(super) fn answer_page(&mut self, slot: Slot, status: u16, content_type: &str, body: &Bytes) {
        let reading = &mut self.visitors[slot.0 as usize].reading;
        let head = *reading == Reading::AskedHead;
        if matches!(reading, Reading::Asked | Reading::AskedHead) {
            *reading = Reading::Answered;
            self.readers.asking -= 1;
        }
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
        self.readers.asking -= usize::from(matches!(reading, Reading::Asked | Reading::AskedHead));
        self.readers.all -= usize::from(!matches!(reading, Reading::None | Reading::Static));
    }
}
