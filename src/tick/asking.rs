//! What clients ask and only the control core knows: whose a token is, what stands on a page.
//!
//! ```text
//! ask ──► line ──► FromShard::Ask ─ ─ ─ ─► ToShard::Answer ──► the same tenant of the slot, if it still waits
//!  │      └► FromShard::Withdraw, if it does not
//!  └ questions_max are out in its lane: refused at once
//! ```
//!
//! A client has one question out at a time and nothing else of it is carried out meanwhile: before the 101 it is in
//! [`Phase::Asking`], later its commands are held. Every question is answered once, so that counting them bounds the line. Who leaves
//! withdraws its question, and the answer is there at once: leavers keep no place that somebody else could ask in.

use super::Reactor;
use crate::ids::{ClientRef, Slot};
use crate::queue::{Answer, FromShard, Question};
use crate::shard::connection::Phase;
use crate::shard::lane::Held;
use crate::socket::{Defect, Ring};
use crate::websocket::handshake::Rejection;
use std::collections::VecDeque;

/// The questions of a shard.
pub(super) struct Questions {
    /// Questions, and the ends of some, not yet pushed: at most two for each that is out.
    line: VecDeque<FromShard>,
    /// Asked and not answered, those of the line included.
    out: Held,
}

impl Questions {
    pub(super) fn new(out: Held) -> Questions {
        Questions { line: VecDeque::new(), out }
    }

    /// Whether some wait for room in the queue to the control core.
    pub(super) fn wait(&self) -> bool {
        !self.line.is_empty()
    }
}

impl<R: Ring> Reactor<R> {
    /// Asks for a client; `false`: too many questions are out, and nothing has changed.
    pub(super) fn ask(&mut self, slot: Slot, question: Question) -> bool {
        if self.questions.out.in_lane() >= self.settings.questions_max {
            self.metrics.questions_refused.add(1);
            return false;
        }
        let generation = self.connections[slot.0 as usize].generation;
        self.questions.out.set(self.questions.out.own() + 1);
        self.visitors[slot.0 as usize].asks = true;
        self.questions.line.push_back(FromShard::Ask { client: ClientRef { slot, generation }, question });
        true
    }

    /// It leaves, and waits for no answer any more.
    pub(super) fn withdraw(&mut self, slot: Slot) {
        if std::mem::take(&mut self.visitors[slot.0 as usize].asks) {
            let generation = self.connections[slot.0 as usize].generation;
            self.questions.line.push_back(FromShard::Withdraw { client: ClientRef { slot, generation } });
        }
    }

    /// Asks before the 101 or instead of it: the client waits in [`Phase::Asking`], until its handshake deadline at most.
    pub(super) fn ask_first(&mut self, slot: Slot, question: Question) {
        let connection = &mut self.connections[slot.0 as usize];
        connection.phase = Phase::Asking;
        if connection.hung_up && matches!(question, Question::Login { .. }) {
            // It will say no more, and a login is for who does.
            return self.cut_by_peer(slot);
        }
        if !self.ask(slot, question) {
            let busy = Rejection::new(503, "too many questions at once, try again\n").with_header("Retry-After", "1");
            self.reject_first(slot, &busy);
        }
    }

    /// Refuses the handshake. A 101 may be owed already, for the case that it went well.
    fn reject_first(&mut self, slot: Slot, rejection: &Rejection) {
        self.metrics.handshakes_rejected.add(1);
        self.connections[slot.0 as usize].egress.clear(&mut self.spares, &mut self.pool);
        self.reply.clear();
        rejection.write(&mut self.reply);
        self.connections[slot.0 as usize].egress.reply(&self.reply, &mut self.spares);
        self.say_last_words(slot);
    }

    /// Gives the control core as many questions as its queue takes; `true` if it got any.
    pub(super) fn push_questions(&mut self) -> bool {
        let mut told = false;
        while let Some(word) = self.questions.line.pop_front() {
            if let Err(full) = self.ends.outbox.push(word, 0) {
                self.questions.line.push_front(full.0);
                break;
            }
            told = true;
        }
        told
    }

    /// An answer has come, for whoever asked if that one still waits.
    pub(super) fn answered(&mut self, client: ClientRef, answer: Answer) {
        let out = self.questions.out.own().checked_sub(1).expect("a question is answered once");
        self.questions.out.set(out);
        let connection = &self.connections[client.slot.0 as usize];
        if connection.generation == client.generation {
            self.visitors[client.slot.0 as usize].asks = false;
        }
        let is_its = connection.generation == client.generation || self.ring.planted(Defect::LateLoginTaken);
        match connection.phase {
            Phase::Asking if is_its => self.answer_first(client.slot, answer),
            Phase::Open if is_its => self.login_answered(client.slot, answer),
            _ => self.nobody_waits(&answer),
        }
    }

    /// The control core counts on a word for each login, taken or not.
    fn nobody_waits(&mut self, answer: &Answer) {
        if let Answer::LoggedIn { user, .. } = answer {
            self.users.nobody_took(*user);
        }
    }

    /// The answer to what was asked before the 101.
    fn answer_first(&mut self, slot: Slot, answer: Answer) {
        match answer {
            Answer::LoggedIn { uid, user } => {
                self.metrics.logins_ok.add(1);
                self.users.log_in(slot, uid, user);
                self.join_everyone(slot);
            }
            Answer::LoginRefused => {
                self.metrics.logins_refused.add(1);
                self.reject_first(slot, &Rejection::new(401, "token is invalid"));
            }
            Answer::Page { status, content_type, body } => self.answer_page(slot, status, content_type, &body),
        }
    }
}
