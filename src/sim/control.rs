//! The control core of one run: the real [`Topics`] between simulated publishers and the real queues, at a random pace.
//!
//! Whatever goes to a shard passes a spy, which knows from the same messages who should get what: every admitted publication
//! reaches every interest exactly once, each message naming the one before it.

use super::book::{BROADCAST, USERS, topic_name, uid};
use super::machine::{Machine, trace};
use crate::clock::Time;
use crate::frame::{Publication, Target};
use crate::ids::{ClientRef, InterestId, InterestRef, Offset, ShardId, UserKey};
use crate::queue::{Answer, Bell, FromShard, Given, InterestKey, Question, Receiver, Sender, ToShard};
use crate::topics::{Ack, Outcome, Outlet, Refusal, Ticket, Topics};
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// What the publishers of one run do.
#[derive(Clone, Debug)]
pub struct PublishPlan {
    /// Longest pause between two bursts, µs.
    pub pause_us_max: u64,
    /// Most messages of one burst.
    pub burst_max: u64,
    /// Largest payload.
    pub bytes_max: u64,
}

/// What the spy knows of one interest of one shard.
struct Wanted {
    interest: InterestRef,
    key: InterestKey,
    /// Last offset pushed, once the answer was.
    last: Option<Offset>,
}

/// The queues towards the shards, with the spy in them.
struct Spy {
    queues: Vec<Sender<ToShard>>,
    given: Vec<Given>,
    /// Whether something else than messages was pushed since the inbox was last seen empty.
    has_words: Vec<Cell<bool>>,
    /// Items and bytes for which there was room when it was last asked, less what was pushed since.
    granted: Vec<Cell<(usize, usize)>>,
    wanted: Vec<HashMap<InterestId, Wanted>>,
    /// Who is logged in where: answers out less farewells heard, by shard.
    users: Vec<HashMap<UserKey, (Box<str>, usize)>>,
    /// Last offset of a user's message pushed to each shard.
    last_of_users: Vec<Offset>,
}

impl Spy {
    fn has_words_for(&self, shard: usize) -> bool {
        if self.queues[shard].is_empty() {
            self.has_words[shard].set(false);
        }
        self.has_words[shard].get()
    }
}

impl Outlet for Spy {
    fn shards(&self) -> usize {
        self.queues.len()
    }

    fn has_room(&self, shard: ShardId, items: usize, bytes: usize) -> bool {
        let index = shard.0 as usize;
        let has_room = self.queues[index].has_room(items, bytes);
        self.granted[index].set(if has_room { (items, bytes) } else { (0, 0) });
        has_room
    }

    fn push(&mut self, shard: ShardId, message: ToShard) {
        let index = shard.0 as usize;
        let wanted = &mut self.wanted[index];
        match &message {
            ToShard::Frame { interest, offset, prev, .. } => {
                let known = wanted.get_mut(&interest.id).filter(|w| w.interest == *interest);
                let Some(known) = known else { panic!("shard {shard} gets a frame of {interest:?}, which it left") };
                assert!(known.last == Some(*prev), "shard {shard} gets {offset} after {prev}, had {:?}", known.last);
                assert!(offset > prev, "shard {shard}: offset {offset} does not grow");
                known.last = Some(*offset);
            }
            ToShard::Subscribed { interest, offset, .. } => {
                let known = wanted.get_mut(&interest.id).filter(|w| w.interest == *interest);
                let Some(known) = known else {
                    panic!("shard {shard} gets an answer about {interest:?}, which it left")
                };
                assert!(known.last.replace(*offset).is_none(), "shard {shard}: {interest:?} was answered twice");
            }
            ToShard::User(message) => {
                let Some((uid, _)) = self.users[index].get(&message.user) else {
                    panic!("shard {shard} gets a message of {}, who is not there", message.uid)
                };
                assert!(**uid == *message.uid, "shard {shard} gets a message of {} for {uid}", message.uid);
                let last = std::mem::replace(&mut self.last_of_users[index], message.offset);
                assert!(last <= message.offset, "shard {shard} gets {} to users after {last}", message.offset);
            }
            ToShard::Answer { answer, .. } => {
                if let Answer::LoggedIn { uid, user } = &**answer {
                    self.users[index].entry(*user).or_insert((uid.clone(), 0)).1 += 1;
                }
            }
            _ => {}
        }
        let bytes = message.queued_bytes();
        let (items_left, bytes_left) = self.granted[index].get();
        let was_asked = items_left > 0 && bytes <= bytes_left;
        assert!(was_asked, "the control core pushed to shard {shard} without asking for room");
        self.granted[index].set((items_left - 1, bytes_left - bytes));
        let mut its = Given::Nothing;
        its.add(&message);
        self.has_words[index].set(self.has_words_for(index) || its == Given::Word);
        self.given[index].add(&message);
        let pushed = self.queues[index].append(message, bytes);
        assert!(pushed.is_ok(), "shard {shard} has no room although it said so");
    }
}

/// The control core.
pub struct Control {
    machine: Rc<Machine>,
    topics: Topics,
    spy: Spy,
    from: Vec<Receiver<FromShard>>,
    bell: Arc<Bell>,
    plan: PublishPlan,
    /// Publications that wait for room.
    waiting: HashMap<Ticket, u32>,
    done: Vec<(Ticket, Result<Ack, Refusal>)>,
    /// Questions, and when whoever knows has found the answer.
    asked: Vec<(Time, ShardId, ClientRef, Question)>,
    next_publish: Time,
    next_turn: Time,
    paused_until: Time,
    /// Publish no more.
    pub quiet: bool,
    /// Shards that said that their drain is over.
    pub drained: usize,
    /// Publications admitted.
    pub admitted: u64,
    /// Publications that had to wait.
    pub waited: u64,
    /// Publications refused.
    pub refused: u64,
}

impl Control {
    /// A control core in front of `queues` and behind `from`, both by shard; the shards ring `bell`.
    pub fn new(
        machine: Rc<Machine>,
        topics: Topics,
        queues: Vec<Sender<ToShard>>,
        from: Vec<Receiver<FromShard>>,
        bell: Arc<Bell>,
        plan: PublishPlan,
    ) -> Control {
        let shards = queues.len();
        let now = machine.now();
        Control {
            machine,
            topics,
            spy: Spy {
                queues,
                given: vec![Given::Nothing; shards],
                has_words: vec![Cell::default(); shards],
                granted: vec![Cell::default(); shards],
                wanted: (0..shards).map(|_| HashMap::new()).collect(),
                users: (0..shards).map(|_| HashMap::new()).collect(),
                last_of_users: vec![Offset(0); shards],
            },
            from,
            bell,
            plan,
            waiting: HashMap::new(),
            done: Vec::new(),
            asked: Vec::new(),
            next_publish: now,
            next_turn: now,
            paused_until: now,
            quiet: false,
            drained: 0,
            admitted: 0,
            waited: 0,
            refused: 0,
        }
    }

    /// When it has something to do.
    pub fn wakes_at(&self) -> Time {
        let publish = if self.quiet { Time::NEVER } else { self.next_publish };
        let mail = if self.bell.is_sleeping() { Time::NEVER } else { self.machine.now() };
        let answer = self.asked.iter().map(|(at, ..)| *at).min().unwrap_or(Time::NEVER);
        self.paused_until.max(publish.min(self.next_turn).min(mail).min(answer))
    }

    /// Items in a shard's inbox.
    pub fn inbox_items(&self, shard: usize) -> usize {
        self.spy.queues[shard].len()
    }

    /// Whether something that a shard is to know at once may be in its inbox.
    pub fn has_words_for(&self, shard: usize) -> bool {
        self.spy.has_words_for(shard)
    }

    /// Whether nothing is under way: no mail, nobody waiting, nothing in an inbox.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.asked.is_empty()
            && self.from.iter().all(Receiver::is_empty)
            && self.spy.queues.iter().all(Sender::is_empty)
    }

    /// Users that it believes to be logged in, and questions it has not answered.
    pub fn users_and_questions(&self) -> (usize, usize) {
        (self.topics.users(), self.asked.len())
    }

    /// Whether somebody pushed to it and did not wake it.
    pub fn sleeps_over_mail(&self) -> bool {
        self.bell.is_sleeping() && self.from.iter().any(|queue| !queue.is_empty())
    }

    /// It stands still until `time`.
    pub fn pause_until(&mut self, time: Time) {
        self.paused_until = time;
    }

    /// Does some of what is to be done, as much as the dice say, and rings whom it pushed to.
    pub fn step(&mut self) {
        let now = self.machine.now();
        if now < self.paused_until {
            return;
        }
        self.bell.awake();
        self.take_mail(now);
        self.answer_questions(now);
        if !self.quiet && now >= self.next_publish {
            self.publish_burst(now);
        }
        if now >= self.next_turn || self.machine.chance(200) {
            self.turn(now);
        }
        self.ring();
        self.bell.sleep();
        if self.from.iter().any(|queue| !queue.is_empty()) {
            self.bell.awake(); // There is more: it does not go to sleep.
            self.paused_until = Time(now.0 + self.machine.within(1_000..=300_000));
        }
    }

    /// Publishes one message on every topic: the last words of a run.
    pub fn publish_everywhere(&mut self) {
        let now = self.machine.now();
        let streams = self.machine.book.borrow().streams();
        for stream in 0..streams {
            self.publish(now, stream);
        }
        self.turn(now);
        self.ring();
    }

    /// Refuses from now on, and pushes `order` to every shard that has room; `true` once all have it.
    pub fn drain(&mut self, pending: &mut Vec<usize>, order: impl Fn() -> ToShard) -> bool {
        self.topics.drain();
        pending.retain(|shard| {
            let shard = ShardId(*shard as u16);
            let full = !self.topics.is_flushed() || !self.spy.has_room(shard, 1, 0);
            if !full {
                self.spy.push(shard, order());
            }
            full
        });
        self.ring();
        pending.is_empty()
    }

    fn take_mail(&mut self, now: Time) {
        let most = if self.machine.calm.get() { 64 } else { self.machine.draw(|dice| dice.magnitude(1..=16)) };
        for _ in 0..most {
            let first = self.machine.draw(|dice| dice.index(self.from.len()));
            let shards = self.from.len();
            let Some(index) = (0..shards).map(|i| (first + i) % shards).find(|i| !self.from[*i].is_empty()) else {
                return;
            };
            let message = self.from[index].pop().expect("it was not empty");
            let shard = ShardId(index as u16);
            trace!(self.machine, "control hears from shard {shard}: {message:?}");
            let wanted = &mut self.spy.wanted[index];
            match &message {
                FromShard::Subscribe { interest, key } => {
                    let known = Wanted { interest: *interest, key: key.clone(), last: None };
                    wanted.insert(interest.id, known);
                }
                FromShard::Unsubscribe { interest } => {
                    if wanted.get(&interest.id).is_some_and(|w| w.interest == *interest) {
                        wanted.remove(&interest.id);
                    }
                }
                FromShard::Ask { client, question } => {
                    let us = self.machine.draw(|dice| dice.magnitude(1..=400_000));
                    let us = if self.machine.calm.get() { 1 } else { us };
                    self.asked.push((Time(now.0 + us * 1000), shard, *client, question.clone()));
                    continue;
                }
                FromShard::Withdraw { client } => {
                    if let Some(at) = self.asked.iter().position(|(_, by, its, _)| (by, its) == (&shard, client)) {
                        self.asked.swap_remove(at);
                        self.topics.reply(now, shard, *client, Answer::LoginRefused, &mut self.spy);
                        self.next_turn = now; // The answer may have found no room.
                    }
                    continue;
                }
                FromShard::LoggedOut { user } => {
                    let users = &mut self.spy.users[index];
                    let (_, logins) = users.get_mut(user).expect("who logs out was logged in");
                    *logins -= 1;
                    if *logins == 0 {
                        users.remove(user);
                    }
                }
                FromShard::Drained => {
                    self.drained += 1;
                    continue;
                }
            }
            self.topics.shard_says(now, shard, message, &mut self.spy);
        }
    }

    fn answer_questions(&mut self, now: Time) {
        while let Some(due) = self.asked.iter().position(|(at, ..)| *at <= now) {
            let (_, shard, client, question) = self.asked.swap_remove(due);
            let Question::Login { token, encoding } = question else { panic!("{client:?} asks {question:?}") };
            match (0..USERS).map(uid).find(|uid| *token == format!("\"{uid}\"")) {
                Some(uid) => self.topics.log_in(now, shard, client, uid.into(), encoding, &mut self.spy),
                None => self.topics.reply(now, shard, client, Answer::LoginRefused, &mut self.spy),
            }
            self.next_turn = now; // The answer may have found no room.
        }
    }

    fn publish_burst(&mut self, now: Time) {
        let (topics, streams) = {
            let book = self.machine.book.borrow();
            (book.topics() as u64, book.streams() as u64)
        };
        let favourite = self.machine.within(0..=topics - 1) as usize;
        for _ in 0..self.machine.draw(|dice| dice.magnitude(1..=self.plan.burst_max)) {
            let topic = match self.machine.within(0..=9) {
                0 => BROADCAST,
                1..=3 => favourite,
                4..=7 => self.machine.within(topics..=streams - 1) as usize,
                _ => self.machine.within(0..=topics - 1) as usize,
            };
            self.publish(now, topic);
        }
        let pause_us = self.machine.draw(|dice| dice.magnitude(20..=self.plan.pause_us_max));
        self.next_publish = Time(now.0 + pause_us * 1000);
    }

    fn publish(&mut self, now: Time, topic: usize) {
        let length = self.machine.draw(|dice| dice.magnitude(1..=self.plan.bytes_max)) as usize;
        let (number, payload) = self.machine.book.borrow_mut().write(topic, length);
        let user = self.machine.book.borrow().user_of(topic);
        let target = match user {
            Some((user, topic)) => Target::user_or_topic(&uid(user), &topic_name(topic)),
            None => Target::topic(topic_name(topic)),
        };
        let publication = Publication { target, data: payload.into() };
        match self.topics.publish(now, publication, &mut self.spy) {
            Outcome::Admitted(ack) => {
                trace!(self.machine, "control admits message {number} to topic {topic} at {}", ack.offset);
                self.book_in(number, ack);
                self.reached_everyone(topic, ack);
            }
            Outcome::Waiting(ticket) => {
                self.waited += 1;
                self.next_turn = now;
                self.waiting.insert(ticket, number);
            }
            Outcome::Refused(refusal) => {
                assert!(matches!(refusal, Refusal::NoRoom { .. }), "message {number} was refused: {refusal}");
                self.refused += 1;
            }
        }
    }

    fn turn(&mut self, now: Time) {
        let mut done = std::mem::take(&mut self.done);
        self.next_turn = self.topics.turn(now, &mut self.spy, &mut done);
        for (ticket, result) in done.drain(..) {
            let number = self.waiting.remove(&ticket).expect("a ticket is answered once");
            match result {
                Ok(ack) => self.book_in(number, ack),
                Err(_) => self.refused += 1,
            }
        }
        self.done = done;
    }

    fn book_in(&mut self, number: u32, ack: Ack) {
        self.admitted += 1;
        self.machine.book.borrow_mut().admit(number, ack.epoch, ack.offset);
    }

    fn reached_everyone(&self, topic: usize, ack: Ack) {
        if let Some((user, _)) = self.machine.book.borrow().user_of(topic) {
            let uid = uid(user);
            for (shard, users) in self.spy.users.iter().enumerate() {
                let last = self.spy.last_of_users[shard];
                let is_there = users.values().any(|(its, _)| **its == *uid);
                assert!(
                    !is_there || last == ack.offset,
                    "{uid} is on shard {shard}, which is at {last}, not {}",
                    ack.offset
                );
            }
            return;
        }
        let name = topic_name(topic);
        for (shard, wanted) in self.spy.wanted.iter().enumerate() {
            for interest in wanted.values() {
                let about_it = match &interest.key {
                    InterestKey::Topic(wanted, _) => topic != BROADCAST && **wanted == *name,
                    InterestKey::Broadcast(_) => topic == BROADCAST,
                };
                // No answer yet: the cut comes after this message.
                if about_it && let Some(last) = interest.last {
                    assert!(
                        last == ack.offset,
                        "{:?} of shard {shard} is at {last}, {} was admitted",
                        interest.key,
                        ack.offset
                    );
                }
            }
        }
    }

    fn ring(&mut self) {
        self.spy.queues.iter().zip(&mut self.spy.given).for_each(|(queue, given)| given.announce(queue));
    }
}
