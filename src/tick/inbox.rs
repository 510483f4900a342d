//! What the control core said: frames into batches, acks to those who wait; and what this shard wants told to it.

use super::Reactor;
use crate::queue::{FromShard, ToShard};
use crate::socket::{Defect, Ring};

/// Items taken in one turn, so that completions are looked at between.
const INBOX_ITEMS_PER_TURN: usize = 4096;

/// Announcements in one turn: thousands of clients with thousands of topics may leave at once. The rest follows in a millisecond.
const ANNOUNCEMENTS_PER_TURN: usize = 4096;

/// Bytes that may wait for the tick in batches. Above it the inbox is left alone, fills, and the control core says "no room".
const BATCH_BYTES_MAX: usize = 4 << 20;

impl<R: Ring> Reactor<R> {
    pub(super) fn take_inbox(&mut self) {
        let batch_bytes_max = self.batch_bytes_max();
        let mut bytes = 0;
        for _ in 0..INBOX_ITEMS_PER_TURN {
            if self.batch_bytes() >= batch_bytes_max {
                break;
            }
            let Some(message) = self.ends.inbox.pop() else { break };
            bytes += message.queued_bytes();
            self.take(message);
        }
        self.ends.inbox.release(bytes);
    }

    /// A batch must fit an idle subscriber's bound, or a client that reads would look slow.
    pub(super) fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX.min(self.settings.pending_bytes_max / 2)
    }

    fn take(&mut self, message: ToShard) {
        match message {
            ToShard::Frame { interest, offset, prev, frame, admitted } => {
                self.interests.frame(interest, offset, prev, &frame, admitted, &mut self.pool);
            }
            ToShard::Subscribed { interest, epoch, offset } => {
                let (mut waiters, shown) = (std::mem::take(&mut self.waiters), self.interests.shown(offset));
                let stale = self.ring.planted(Defect::StaleInterestAck);
                self.interests.acknowledged(interest, epoch, offset, stale, &mut waiters);
                for waiter in waiters.drain(..) {
                    self.acknowledged(interest.id, waiter, epoch, shown);
                }
                self.waiters = waiters;
            }
            ToShard::Epoch { epoch, base } => self.interests.begin_epoch(epoch, base),
            ToShard::Unsubscribed { interest } => {
                self.interests.let_go(interest, self.ring.planted(Defect::StaleInterestAck));
            }
            ToShard::User(message) => self.collect_for_user(&message),
            ToShard::Answer { client, answer } => self.answered(client, *answer),
            ToShard::Drain(drain) => self.begin_drain(drain),
            ToShard::Stall { duration_ms } => {
                tracing::warn!(shard = self.id.0, duration_ms, "standing still, as asked");
                std::thread::sleep(std::time::Duration::from_millis(duration_ms));
            }
        }
    }

    /// Tells control what is wanted and what no longer is; what finds no room waits as it is, and is decided anew then.
    pub(super) fn announce(&mut self) {
        self.interests.linger(self.now, ANNOUNCEMENTS_PER_TURN);
        let mut told = false;
        for _ in 0..ANNOUNCEMENTS_PER_TURN {
            self.interests.settle_announcements();
            let Some((interest, key)) = self.interests.announcement() else { break };
            let message = match key {
                Some(key) => FromShard::Subscribe { interest, key: key.clone() },
                None => FromShard::Unsubscribe { interest },
            };
            if self.ends.outbox.push(message, 0).is_err() {
                break;
            }
            self.interests.announced();
            told = true;
        }
        told |= self.push_questions();
        told |= self.push_farewells();
        if told {
            self.ends.outbox.ring();
        }
    }
}
