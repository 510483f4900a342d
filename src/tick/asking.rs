//! What clients ask and only the control core knows: whose a token is, what stands on a page.
//!
//! ```text
//! ask ──► line ──► FromShard::Ask ─ ─ ─ ─► ToShard::Answer ──► the same tenant of the slot, if it still waits
//!  └ questions_max are out: refused at once
//! ```
//!
//! A client has one question out at a time and nothing else of it is carried out meanwhile: before the 101 it is in
//! [`Phase::Asking`], later its commands are held. Every question is answered once, so that counting them bounds the line.

use super::Reactor;
use crate::ids::{ClientRef, Slot};
use crate::queue::{Answer, FromShard, Question};
use crate::shard::connection::Phase;
use crate::socket::Ring;
use crate::websocket::handshake::Rejection;
use std::collections::VecDeque;

/// The questions of a shard.
#[derive(Default)]
pub(super) struct Questions {
    /// Not yet pushed.
    line: VecDeque<(ClientRef, Question)>,
    /// Asked and not answered, those of the line included.
    out: usize,
}

impl Questions {
    /// Whether some wait for room in the queue to the control core.
    pub(super) fn wait(&self) -> bool {
        !self.line.is_empty()
    }
}

impl<R: Ring> Reactor<R> {
    /// Asks for a client; `false`: too many questions are out, and nothing has changed.
    fn ask(&mut self, slot: Slot, question: Question) -> bool {
        if self.questions.out >= self.settings.questions_max {
            self.metrics.questions_refused.add(1);
            return false;
        }
        let generation = self.connections[slot.0 as usize].generation;
        self.questions.out += 1;
        self.questions.line.push_back((ClientRef { slot, generation }, question));
        true
    }

    /// Asks before the 101 or instead of it: the client waits in [`Phase::Asking`], until its handshake deadline at most.
    pub(super) fn ask_first(&mut self, slot: Slot, question: Question) {
        self.connections[slot.0 as usize].phase = Phase::Asking;
        let refusal = match &question {
            Question::Login { .. } => Answer::LoginRefused,
            Question::Page(_) => Answer::Page {
                status: 503,
                content_type: "text/plain; charset=utf-8",
                body: bytes::Bytes::from_static(b"too many questions at once, try again\n"),
            },
        };
        if !self.ask(slot, question) {
            self.answer_first(slot, refusal);
        }
    }

    /// Gives the control core as many questions as its queue takes; `true` if it got any.
    pub(super) fn push_questions(&mut self) -> bool {
        let mut told = false;
        while let Some((client, question)) = self.questions.line.pop_front() {
            if let Err(full) = self.ends.outbox.push(FromShard::Ask { client, question }, 0) {
                if let FromShard::Ask { client, question } = full.0 {
                    self.questions.line.push_front((client, question));
                }
                break;
            }
            told = true;
        }
        told
    }

    /// An answer has come, for whoever asked if that one still waits.
    pub(super) fn answered(&mut self, client: ClientRef, answer: Answer) {
        self.questions.out = self.questions.out.checked_sub(1).expect("a question is answered once");
        let connection = &self.connections[client.slot.0 as usize];
        if connection.generation == client.generation && connection.phase == Phase::Asking {
            self.answer_first(client.slot, answer);
        }
    }

    /// The answer to what was asked before the 101.
    fn answer_first(&mut self, slot: Slot, answer: Answer) {
        self.reply.clear();
        match answer {
            Answer::LoggedIn { .. } => return self.join_everyone(slot),
            Answer::LoginRefused => {
                self.metrics.handshakes_rejected.add(1);
                // The 101 is owed already, for the case that it went well.
                self.connections[slot.0 as usize].egress.clear(&mut self.spares, &mut self.pool);
                Rejection::new(401, "token is invalid").write(&mut self.reply);
            }
            Answer::Page { status, content_type, body } => return self.answer_page(slot, status, content_type, &body),
        }
        self.connections[slot.0 as usize].egress.reply(&self.reply, &mut self.spares);
        self.say_last_words(slot);
    }
}
