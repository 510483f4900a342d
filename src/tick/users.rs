//! Clients who say who they are: login, logout, private topics, and what is published to a user.

use super::Reactor;
use crate::dialect::{Identity, SubscribeError, TOPIC_BYTES_MAX};
use crate::ids::{Epoch, Offset, Slot};
use crate::queue::{Answer, FromShard, Question, UserFrame};
use crate::shard::connection::Phase;
use crate::socket::{Defect, Ring};

impl<R: Ring> Reactor<R> {
    /// Asks whose the token is; until the answer comes nothing else of this client is carried out. Not for who will say no more.
    pub(super) fn log_in(&mut self, slot: Slot, token: Box<str>) {
        if self.connections[slot.0 as usize].hung_up {
            return self.cut_by_peer(slot);
        }
        let encoding = self.connections[slot.0 as usize].encoding;
        if self.ask(slot, Question::Login { token, encoding }) {
            self.connections[slot.0 as usize].held().awaits_ack = true;
        } else {
            self.tell_identity(slot, Identity::LoginRefused);
        }
    }

    /// The answer to a client that is open. It asked as this tenant, so it waits for this answer.
    pub(super) fn login_answered(&mut self, slot: Slot, answer: Answer) {
        match answer {
            Answer::LoggedIn { uid, user } => {
                self.metrics.logins_ok.add(1);
                if self.users.uid(slot).is_some_and(|before| *before != *uid) {
                    self.round.cancel_user(slot, None);
                }
                self.users.log_in(slot, uid, user);
                self.tell_identity(slot, Identity::LoggedIn);
            }
            Answer::LoginRefused => {
                self.metrics.logins_refused.add(1);
                self.tell_identity(slot, Identity::LoginRefused);
            }
            Answer::Page { .. } => unreachable!("pages are asked for before the 101 only"),
        }
        if let Some(held) = &mut self.connections[slot.0 as usize].held {
            held.awaits_ack = false;
        }
        self.resume(slot);
    }

    pub(super) fn log_out(&mut self, slot: Slot) {
        if self.users.uid(slot).is_none() {
            return self.tell_identity(slot, Identity::NotLoggedIn);
        }
        if !self.ring.planted(Defect::LogoutForgotten) {
            self.forget_user(slot);
        }
        self.tell_identity(slot, Identity::LoggedOut);
    }

    /// The connection is nobody any more: nothing collected for its user is its own.
    pub(super) fn forget_user(&mut self, slot: Slot) {
        if self.users.log_out(slot) {
            self.round.cancel_user(slot, None);
        }
    }

    pub(super) fn subscribe_privately(&mut self, slot: Slot, topic: &str) {
        if self.users.uid(slot).is_none() {
            return self.tell_identity(slot, Identity::NotLoggedIn);
        }
        // From here on, like a subscriber of an interest that is on: whatever comes out of the inbox after this.
        let mut result = Ok((Epoch(0), Offset(0)));
        if topic.len() > TOPIC_BYTES_MAX {
            result = Err(SubscribeError::NameTooLong);
        } else if !self.users.hears(slot, topic) {
            let is_one_too_many = self.users.topics() >= self.settings.topics_max;
            if self.topics_held(slot) >= self.settings.topics_per_connection_max || is_one_too_many {
                self.metrics.topics_refused.add(1);
                result = Err(SubscribeError::TooManyTopics);
            } else {
                self.users.subscribe(slot, topic);
            }
        }
        self.answer_subscribe(slot, 0, topic, result);
    }

    pub(super) fn unsubscribe_privately(&mut self, slot: Slot, topic: &str) {
        if self.users.uid(slot).is_none() {
            return self.tell_identity(slot, Identity::NotLoggedIn);
        }
        self.users.unsubscribe(slot, topic);
        self.unheard(slot, topic);
        self.reply.clear();
        self.connections[slot.0 as usize].dialect.get().unsubscribed(0, topic, &mut self.reply);
        self.owe_reply(slot);
    }

    /// A subscription to `topic` has ended, private or public: unless the other one is there, what was collected for the
    /// connection's user about it is the connection's no longer.
    pub(super) fn unheard(&mut self, slot: Slot, topic: &str) {
        if self.users.uid(slot).is_none() || self.users.hears(slot, topic) {
            return;
        }
        let connection = &self.connections[slot.0 as usize];
        let public = self.interests.find(topic, connection.encoding);
        if public.is_none_or(|id| !self.interests.get(id).members().contains(&slot)) {
            self.users.cancel(slot, Some(topic));
            self.round.cancel_user(slot, Some(topic));
        }
    }

    /// Topics of a client, public and private. Its part in what goes to everyone is not its doing and does not count.
    pub(super) fn topics_held(&self, slot: Slot) -> usize {
        self.connections[slot.0 as usize].subscriptions.len().saturating_sub(1) + self.users.topics_of(slot)
    }

    /// Takes a user's message for those of the user's connections that take part in its topic.
    pub(super) fn collect_for_user(&mut self, message: &UserFrame) {
        let (connections, interests) = (&self.connections, &self.interests);
        let takes = |slot: Slot| {
            let connection = &connections[slot.0 as usize];
            connection.phase == Phase::Open && connection.encoding == message.encoding
        };
        let public = interests.find_named(&message.topic, message.encoding).map(|id| interests.get(id).members());
        let hears_publicly = |slot: Slot| public.is_some_and(|members| members.contains(&slot));
        self.users.collect(message, &mut self.pool, takes, hears_publicly);
    }

    /// Tells the control core who has logged out; `true` if it took anything.
    pub(super) fn push_farewells(&mut self) -> bool {
        let mut told = false;
        while let Some(user) = self.users.farewell() {
            if self.ends.outbox.push(FromShard::LoggedOut { user }, 0).is_err() {
                break;
            }
            self.users.farewell_said();
            told = true;
        }
        told
    }

    /// Whether questions or farewells wait for room in the queue to the control core.
    pub(super) fn has_words_for_control(&self) -> bool {
        self.questions.wait() || self.users.farewell().is_some()
    }

    fn tell_identity(&mut self, slot: Slot, identity: Identity) {
        self.reply.clear();
        self.connections[slot.0 as usize].dialect.get().identity(identity, &mut self.reply);
        self.owe_reply(slot);
    }
}
