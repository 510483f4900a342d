//! A stand-in for `topics`: everybody wants everything, one line for all who wait, and a panic on request.

use fanwire::clock::Time;
use fanwire::frame::{Publication, Target};
use fanwire::ids::{ClientRef, Encoding, Epoch, InterestId, InterestRef, Offset, ShardId, UserKey};
use fanwire::ingest::{Mind, Oracle};
use fanwire::queue::{Answer, FromShard, Page, ToShard};
use fanwire::topics::{Ack, Outcome, Outlet, Refusal, Ticket};
use futures_util::future::BoxFuture;
use std::collections::VecDeque;

/// Data that makes [`FakeTopics`] panic, as a failed assertion would.
pub const PANIC: &str = "panic";
pub const EPOCH: Epoch = Epoch(7);

const INTEREST: InterestRef = InterestRef { id: InterestId(0), generation: 1 };

pub struct FakeTopics {
    pub publish_wait_ms: u64,
    pub message_bytes_max: usize,
    /// It always has more to do at once.
    pub busy: bool,
    offset: u64,
    ticket: u64,
    line: VecDeque<(Ticket, Time, Publication)>,
    draining: bool,
}

impl FakeTopics {
    pub fn new(publish_wait_ms: u64) -> FakeTopics {
        let line = VecDeque::new();
        FakeTopics {
            publish_wait_ms,
            message_bytes_max: 1000,
            busy: false,
            offset: 0,
            ticket: 0,
            line,
            draining: false,
        }
    }

    fn first_full(&self, publication: &Publication, outlet: &dyn Outlet) -> Option<ShardId> {
        (0..outlet.shards()).map(|i| ShardId(i as u16)).find(|s| !outlet.has_room(*s, 1, publication.data.len()))
    }

    fn admit(&mut self, now: Time, publication: &Publication, outlet: &mut dyn Outlet) -> Ack {
        self.offset += 1;
        let (offset, prev) = (Offset(self.offset), Offset(self.offset - 1));
        for i in 0..outlet.shards() {
            let frame = publication.data[..].into();
            outlet.push(ShardId(i as u16), ToShard::Frame { interest: INTEREST, offset, prev, frame, admitted: now });
        }
        Ack { epoch: EPOCH, offset }
    }
}

impl Mind for FakeTopics {
    fn publish(&mut self, now: Time, publication: Publication, outlet: &mut dyn Outlet) -> Outcome {
        assert_ne!(publication.data, PANIC, "asked for");
        let bytes = publication.data.len();
        let refusal = if self.draining {
            Refusal::Draining
        } else if bytes > self.message_bytes_max {
            Refusal::TooLarge { bytes, message_bytes_max: self.message_bytes_max }
        } else if let Target::Topic(topic) = &publication.target
            && topic.len() > 255
        {
            Refusal::NameTooLong { bytes: topic.len() }
        } else if std::str::from_utf8(&publication.data).is_err() {
            Refusal::NotUtf8
        } else if self.line.is_empty() && self.first_full(&publication, outlet).is_none() {
            return Outcome::Admitted(self.admit(now, &publication, outlet));
        } else {
            self.ticket += 1;
            self.line.push_back((Ticket(self.ticket), now.plus_ms(self.publish_wait_ms), publication));
            return Outcome::Waiting(Ticket(self.ticket));
        };
        Outcome::Refused(refusal)
    }

    fn shard_says(&mut self, _now: Time, shard: ShardId, message: FromShard, outlet: &mut dyn Outlet) {
        if let FromShard::Subscribe { interest, .. } = message {
            outlet.push(shard, ToShard::Subscribed { interest, epoch: EPOCH, offset: Offset(self.offset) });
        }
    }

    fn log_in(
        &mut self,
        _now: Time,
        shard: ShardId,
        client: ClientRef,
        uid: Box<str>,
        _encoding: Encoding,
        outlet: &mut dyn Outlet,
    ) {
        let answer = Answer::LoggedIn { uid, user: UserKey(0) };
        outlet.push(shard, ToShard::Answer { client, answer: Box::new(answer) });
    }

    fn reply(&mut self, _now: Time, shard: ShardId, client: ClientRef, answer: Answer, outlet: &mut dyn Outlet) {
        outlet.push(shard, ToShard::Answer { client, answer: Box::new(answer) });
    }

    fn turn(&mut self, now: Time, outlet: &mut dyn Outlet, done: &mut Vec<(Ticket, Result<Ack, Refusal>)>) -> Time {
        while let Some((ticket, deadline, publication)) = self.line.pop_front() {
            let outcome = match self.first_full(&publication, outlet) {
                _ if self.draining => Err(Refusal::Draining),
                None => Ok(self.admit(now, &publication, outlet)),
                Some(shard) if deadline <= now => Err(Refusal::NoRoom { shard, waited_ms: self.publish_wait_ms }),
                Some(_) => {
                    self.line.push_front((ticket, deadline, publication));
                    return now.plus_ms(1);
                }
            };
            done.push((ticket, outcome));
        }
        if self.busy {
            return now;
        }
        Time::NEVER
    }

    fn drain(&mut self) {
        self.draining = true;
    }
}

/// An oracle that knows nobody, and no page.
pub struct Nobody;

impl Oracle for Nobody {
    fn login(&self, _token: Box<str>) -> BoxFuture<'static, Option<Box<str>>> {
        Box::pin(async { None })
    }

    fn page(&self, _page: Page) -> BoxFuture<'static, Answer> {
        Box::pin(async { Answer::Page { status: 404, content_type: "text/plain", body: Default::default() } })
    }
}

/// A log level that is only remembered.
#[derive(Default)]
pub struct FakeLog(std::sync::Mutex<String>);

impl fanwire::ingest::LogLevel for FakeLog {
    fn level(&self) -> String {
        self.0.lock().unwrap().clone()
    }

    fn set_level(&self, level: &str) -> Result<(), String> {
        *self.0.lock().unwrap() = level.to_owned();
        Ok(())
    }
}
