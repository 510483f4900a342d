//! Who of a shard's connections is logged in, what each wants to hear privately, and what a tick collects for users.
//!
//! ```text
//! UserFrame ──► connections of that user ──► those that take part ──► batch [m1|m2|m3…]   targets (slot, m1), (slot, m3), …
//!               (linked by slot)             in its topic              a few KiB each      at the tick: pieces of it
//! ```
//!
//! A logged-in connection costs one allocation for its identity and one for its uid; its private topics are pointers to names
//! that all connections share. The messages of all users share batches, each small, so that whoever is slow pins little more than
//! what it is owed.

use super::interests::{Sealed, Whose};
use super::pool::Pool;
use crate::frame::Batch;
use crate::ids::{Slot, UserKey};
use crate::queue::UserFrame;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// A batch is closed at this many bytes: what a slow consumer of one message pins of it at most, that message not counted.
const BATCH_BYTES_MAX: u32 = 4096;

/// No slot, no target.
const NIL: u32 = u32::MAX;

/// A logged-in connection.
struct Identity {
    uid: Box<str>,
    user: UserKey,
    /// Neighbours among the connections of the same key.
    previous: u32,
    next: u32,
    /// Its private topics, each a name of [`Users::names`].
    topics: Vec<Arc<str>>,
}

/// A message collected for the tick.
struct Message {
    topic: Arc<str>,
    batch: u32,
    start: u32,
    end: u32,
}

/// A connection that gets one.
struct Target {
    slot: Slot,
    message: u32,
    /// The connection's target before this one.
    before: u32,
    is_cancelled: bool,
}

/// Everyone who is logged in on a shard.
#[derive(Default)]
pub struct Users {
    /// By slot; grows to the highest slot that ever logged in.
    identities: Vec<Option<Box<Identity>>>,
    /// The connection of each key that logged in last; the others are linked behind it.
    first: HashMap<UserKey, u32>,
    /// Names of private topics.
    names: HashSet<Arc<str>>,
    logged_in: usize,
    subscriptions: usize,
    /// Logins that are over and of which the control core does not know. One for each answer at most.
    farewells: VecDeque<UserKey>,

    batches: Vec<Batch>,
    messages: Vec<Message>,
    targets: Vec<Target>,
    /// Each connection's newest target.
    newest: HashMap<Slot, u32>,
    batch_bytes: usize,
    live: usize,
}

impl Users {
    /// Who the connection is.
    pub fn uid(&self, slot: Slot) -> Option<&str> {
        self.identity(slot).map(|identity| &*identity.uid)
    }

    /// Connections logged in.
    pub fn logged_in(&self) -> usize {
        self.logged_in
    }

    /// Private subscriptions of all.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// Names of private topics.
    pub fn topics(&self) -> usize {
        self.names.len()
    }

    /// Private subscriptions of one.
    pub fn topics_of(&self, slot: Slot) -> usize {
        self.identity(slot).map_or(0, |identity| identity.topics.len())
    }

    fn identity(&self, slot: Slot) -> Option<&Identity> {
        self.identities.get(slot.0 as usize)?.as_deref()
    }

    fn linked(&mut self, slot: u32) -> Option<&mut Identity> {
        self.identities.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The connection is this user from now on. If it was somebody else, all that was that one's is gone; the same again
    /// changes nothing.
    pub fn log_in(&mut self, slot: Slot, uid: Box<str>, user: UserKey) {
        if self.uid(slot) == Some(&*uid) {
            // One answer more than this connection stands for.
            return self.farewells.push_back(user);
        }
        self.log_out(slot);
        let index = slot.0 as usize;
        if index >= self.identities.len() {
            self.identities.resize_with(index + 1, || None);
        }
        let next = self.first.insert(user, slot.0).unwrap_or(NIL);
        if let Some(neighbour) = self.linked(next) {
            neighbour.previous = slot.0;
        }
        let identity = Identity { uid, user, previous: NIL, next, topics: Vec::new() };
        self.identities[index] = Some(Box::new(identity));
        self.logged_in += 1;
    }

    /// The connection is nobody from now on; returns whether it was somebody. What was collected for it is its no longer.
    pub fn log_out(&mut self, slot: Slot) -> bool {
        let Some(identity) = self.identities.get_mut(slot.0 as usize).and_then(Option::take) else { return false };
        self.cancel(slot, None);
        let Identity { user, previous, next, topics, .. } = *identity;
        if let Some(neighbour) = self.linked(next) {
            neighbour.previous = previous;
        }
        match (self.linked(previous), next) {
            (Some(neighbour), next) => neighbour.next = next,
            (None, NIL) => drop(self.first.remove(&user)),
            (None, next) => drop(self.first.insert(user, next)),
        }
        self.logged_in -= 1;
        self.subscriptions -= topics.len();
        for topic in topics {
            self.forget(topic);
        }
        self.farewells.push_back(user);
        true
    }

    /// A login that came for a connection which is gone.
    pub fn nobody_took(&mut self, user: UserKey) {
        self.farewells.push_back(user);
    }

    /// Whether the connection hears `topic` privately.
    pub fn hears(&self, slot: Slot, topic: &str) -> bool {
        self.identity(slot).is_some_and(|identity| identity.topics.iter().any(|name| **name == *topic))
    }

    /// A logged-in connection hears `topic` privately from now on.
    pub fn subscribe(&mut self, slot: Slot, topic: &str) {
        if self.hears(slot, topic) {
            return;
        }
        let name = match self.names.get(topic) {
            Some(name) => name.clone(),
            None => {
                let name: Arc<str> = topic.into();
                self.names.insert(name.clone());
                name
            }
        };
        let identity = self.linked(slot.0).expect("only who is logged in has private topics");
        identity.topics.reserve_exact(1); // Few have many, and all pay for what is reserved.
        identity.topics.push(name);
        self.subscriptions += 1;
    }

    /// It hears it no longer.
    pub fn unsubscribe(&mut self, slot: Slot, topic: &str) {
        let Some(identity) = self.linked(slot.0) else { return };
        let Some(at) = identity.topics.iter().position(|name| **name == *topic) else { return };
        let name = identity.topics.swap_remove(at);
        self.subscriptions -= 1;
        self.forget(name);
    }

    /// Lets go of a name, and of the name itself with its last holder.
    fn forget(&mut self, name: Arc<str>) {
        // The set's own, and this one.
        if Arc::strong_count(&name) <= 2 {
            self.names.remove(&name);
        }
    }

    /// The next farewell for the control core.
    pub fn farewell(&self) -> Option<UserKey> {
        self.farewells.front().copied()
    }

    /// The control core has it.
    pub fn farewell_said(&mut self) {
        self.farewells.pop_front();
    }

    /// Collects a message for those of its user's connections that hear its topic privately, or for which `hears_publicly` is
    /// true; for none of which `takes` is false.
    pub fn collect(
        &mut self,
        message: &UserFrame,
        pool: &mut Pool,
        takes: impl Fn(Slot) -> bool,
        hears_publicly: impl Fn(Slot) -> bool,
    ) {
        let Users { identities, first, names, messages, targets, newest, .. } = self;
        let Some(&at) = first.get(&message.user) else { return };
        // Pointers are compared from here on. Nobody hears it privately if there is no name.
        let name = names.get(&message.topic);
        let (index, before) = (messages.len() as u32, targets.len());
        let mut at = at;
        while at != NIL {
            let identity = identities[at as usize].as_deref().expect("who is linked is logged in");
            let slot = Slot(at);
            at = identity.next;
            let privately = || name.is_some_and(|name| identity.topics.iter().any(|topic| Arc::ptr_eq(topic, name)));
            if *identity.uid == *message.uid && takes(slot) && (privately() || hears_publicly(slot)) {
                let target = targets.len() as u32;
                let before = newest.insert(slot, target).unwrap_or(NIL);
                targets.push(Target { slot, message: index, before, is_cancelled: false });
            }
        }
        let its = targets.len() - before;
        if its == 0 {
            return;
        }
        self.live += its;
        let bytes = message.frame.len();
        if self.batches.last().is_none_or(|b| b.len() as usize + bytes > BATCH_BYTES_MAX as usize) {
            let mut batch = pool.take(bytes);
            batch.oldest = message.admitted;
            self.batches.push(batch);
        }
        let batch = self.batches.last_mut().expect("pushed above");
        let start = batch.len();
        batch.push(&message.frame, message.offset);
        let topic = message.topic.clone();
        self.messages.push(Message { topic, batch: self.batches.len() as u32 - 1, start, end: start + bytes as u32 });
        self.batch_bytes += bytes + its * size_of::<Target>();
    }

    /// Takes back what was collected for a connection, about one topic or all; returns how many messages that were.
    pub fn cancel(&mut self, slot: Slot, topic: Option<&str>) -> usize {
        let mut at = self.newest.get(&slot).copied().unwrap_or(NIL);
        let mut cancelled = 0;
        while at != NIL {
            let target = &mut self.targets[at as usize];
            at = target.before;
            let is_meant = topic.is_none_or(|topic| *self.messages[target.message as usize].topic == *topic);
            if is_meant && !std::mem::replace(&mut target.is_cancelled, true) {
                cancelled += 1;
            }
        }
        self.live -= cancelled;
        if self.live == 0 {
            // Nobody's, and there will be no tick for it: bytes that nothing seals would keep the inbox shut for ever.
            self.batches.clear();
            self.forget_collected();
        }
        cancelled
    }

    fn forget_collected(&mut self) {
        self.messages.clear();
        self.targets.clear();
        self.newest.clear();
        self.batch_bytes = 0;
        self.live = 0;
    }

    /// Messages collected for a connection.
    pub fn collected(&self, slot: Slot) -> usize {
        let mut at = self.newest.get(&slot).copied().unwrap_or(NIL);
        let mut live = 0;
        while at != NIL {
            let target = &self.targets[at as usize];
            live += usize::from(!target.is_cancelled);
            at = target.before;
        }
        live
    }

    /// Whether something waits for the tick.
    pub fn has_news(&self) -> bool {
        self.live > 0
    }

    /// Bytes in all batches that wait, and of the lists of who gets what: a user may have thousands of connections.
    pub fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// Seals the tick's messages, behind what is sealed already; each is `target(index into sealed, slot)`.
    pub fn seal(&mut self, pool: &mut Pool, sealed: &mut Vec<Sealed>, mut target: impl FnMut(u32, Slot)) {
        let mut targets = self.targets.drain(..).peekable();
        let mut messages = self.messages.drain(..).enumerate().peekable();
        for (number, batch) in self.batches.drain(..).enumerate() {
            let batch = pool.seal(batch);
            while let Some((index, message)) = messages.next_if(|(_, m)| m.batch as usize == number) {
                let mut is_wanted = false;
                while let Some(its) = targets.next_if(|t| t.message as usize == index) {
                    if !its.is_cancelled {
                        is_wanted = true;
                        target(sealed.len() as u32, its.slot);
                    }
                }
                if is_wanted {
                    let Message { topic, start, end, .. } = message;
                    let whose = Whose::User(topic);
                    sealed.push(Sealed { whose, batch: batch.clone(), start, end, fresh: Vec::new() });
                }
            }
            pool.release(batch);
        }
        drop((targets, messages));
        self.forget_collected();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::ids::{Encoding, Offset};

    const KEY: UserKey = UserKey(7);

    fn message(uid: &str, topic: &str, data: &str) -> UserFrame {
        UserFrame {
            user: KEY,
            uid: uid.into(),
            topic: topic.into(),
            encoding: Encoding(0),
            offset: Offset(1),
            frame: data.as_bytes().into(),
            admitted: Time(1),
        }
    }

    /// What each connection gets at the tick, as "slot:bytes".
    fn tick(users: &mut Users, pool: &mut Pool) -> Vec<String> {
        let (mut sealed, mut targets) = (Vec::new(), Vec::new());
        users.seal(pool, &mut sealed, |index, slot| targets.push((slot, index)));
        targets.sort();
        let text = |i: u32| {
            let Sealed { batch, start, end, .. } = &sealed[i as usize];
            String::from_utf8_lossy(&batch.bytes()[*start as usize..*end as usize]).into_owned()
        };
        let got = targets.iter().map(|(slot, index)| format!("{slot}:{}", text(*index))).collect();
        sealed.into_iter().for_each(|s| pool.release(s.batch));
        assert_eq!((pool.out(), users.has_news(), users.batch_bytes()), (0, false, 0));
        got
    }

    fn collect(users: &mut Users, pool: &mut Pool, uid: &str, topic: &str, data: &str) {
        users.collect(&message(uid, topic, data), pool, |_| true, |_| false);
    }

    fn farewells(users: &mut Users) -> usize {
        std::iter::from_fn(|| users.farewell().map(|_| users.farewell_said())).count()
    }

    #[test]
    fn uids_that_share_a_key_are_told_apart_and_only_subscribers_hear() {
        let (mut users, mut pool) = (Users::default(), Pool::default());
        for (slot, uid) in [(3, "ann"), (1, "bob"), (2, "ann"), (9, "ann")] {
            users.log_in(Slot(slot), uid.into(), KEY);
        }
        for slot in [1, 2, 3] {
            users.subscribe(Slot(slot), "t");
        }
        users.subscribe(Slot(9), "other");
        collect(&mut users, &mut pool, "ann", "t", "for ann");
        collect(&mut users, &mut pool, "eve", "t", "for eve");
        collect(&mut users, &mut pool, "bob", "t", "for bob");
        users.collect(&message("ann", "u", "publicly"), &mut pool, |slot| slot != Slot(3), |slot| slot.0 > 2);
        assert_eq!(users.collected(Slot(2)), 1);
        assert_eq!(tick(&mut users, &mut pool), ["1:for bob", "2:for ann", "3:for ann", "9:publicly"]);
        assert_eq!(tick(&mut users, &mut pool), [""; 0]);
    }

    #[test]
    fn what_was_collected_is_not_the_next_users() {
        let (mut users, mut pool) = (Users::default(), Pool::default());
        users.log_in(Slot(1), "ann".into(), KEY);
        users.subscribe(Slot(1), "t");
        collect(&mut users, &mut pool, "ann", "t", "ann's");
        users.log_in(Slot(1), "bob".into(), KEY);
        assert!(!users.has_news() && !users.hears(Slot(1), "t"));
        users.subscribe(Slot(1), "t");
        collect(&mut users, &mut pool, "bob", "t", "bob's");
        assert_eq!(tick(&mut users, &mut pool), ["1:bob's"]);
        assert_eq!((farewells(&mut users), users.uid(Slot(1))), (1, Some("bob")));
    }

    #[test]
    fn leaving_a_topic_takes_back_its_messages_and_no_others() {
        let (mut users, mut pool) = (Users::default(), Pool::default());
        users.log_in(Slot(1), "ann".into(), KEY);
        for topic in ["a", "b"] {
            users.subscribe(Slot(1), topic);
        }
        for data in ["1", "2"] {
            collect(&mut users, &mut pool, "ann", "a", data);
            collect(&mut users, &mut pool, "ann", "b", data);
        }
        users.unsubscribe(Slot(1), "a");
        assert_eq!((users.cancel(Slot(1), Some("a")), users.cancel(Slot(1), Some("a"))), (2, 0));
        assert_eq!((users.subscriptions(), users.topics()), (1, 1));
        assert_eq!(tick(&mut users, &mut pool), ["1:1", "1:2"]);
    }

    #[test]
    fn what_a_message_costs_for_each_connection_counts() {
        let (mut users, mut pool) = (Users::default(), Pool::default());
        for slot in 0..1000 {
            users.log_in(Slot(slot), "ann".into(), KEY);
            users.subscribe(Slot(slot), "t");
        }
        for n in 1..=5 {
            collect(&mut users, &mut pool, "ann", "t", "x");
            assert_eq!(users.batch_bytes(), n * (1 + 1000 * size_of::<Target>()));
        }
        assert_eq!(tick(&mut users, &mut pool).len(), 5000);
    }

    #[test]
    fn with_the_last_who_wants_it_everything_collected_is_gone() {
        let (mut users, mut pool) = (Users::default(), Pool::default());
        for slot in [1, 2] {
            users.log_in(Slot(slot), "ann".into(), KEY);
            users.subscribe(Slot(slot), "t");
        }
        for _ in 0..3 {
            collect(&mut users, &mut pool, "ann", "t", &"x".repeat(3000));
        }
        assert_eq!((users.cancel(Slot(1), Some("t")), users.has_news(), users.batches.len()), (3, true, 3));
        assert!(users.batch_bytes() >= 9000, "the other one's");
        assert!(users.log_out(Slot(2)));
        assert_eq!((users.has_news(), users.batch_bytes(), users.batches.len()), (false, 0, 0));
        assert_eq!((users.collected(Slot(1)), users.cancel(Slot(1), None)), (0, 0));
        collect(&mut users, &mut pool, "ann", "t", "next");
        assert_eq!(tick(&mut users, &mut pool), ["1:next"]);
    }

    #[test]
    fn every_login_has_one_farewell() {
        let mut users = Users::default();
        users.log_in(Slot(1), "ann".into(), KEY);
        users.subscribe(Slot(1), "t");
        users.log_in(Slot(1), "ann".into(), KEY);
        assert!(users.hears(Slot(1), "t"), "the same again changes nothing");
        users.nobody_took(KEY);
        assert_eq!(farewells(&mut users), 2);
        assert!(users.log_out(Slot(1)) && !users.log_out(Slot(1)));
        assert_eq!((farewells(&mut users), users.logged_in(), users.topics()), (1, 0, 0));
        assert!(users.first.is_empty());
    }

    #[test]
    fn connections_of_a_user_leave_in_any_order() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3], [2, 3, 1]] {
            let (mut users, mut pool) = (Users::default(), Pool::default());
            for slot in 1..=3 {
                users.log_in(Slot(slot), "ann".into(), KEY);
                users.subscribe(Slot(slot), "t");
            }
            for (left, slot) in order.into_iter().enumerate() {
                users.log_out(Slot(slot));
                collect(&mut users, &mut pool, "ann", "t", "x");
                assert_eq!(tick(&mut users, &mut pool).len(), 2 - left);
            }
        }
    }

    #[test]
    fn batches_are_small_so_that_the_slow_pin_little() {
        let (mut users, mut pool) = (Users::default(), Pool::default());
        users.log_in(Slot(1), "ann".into(), KEY);
        users.subscribe(Slot(1), "t");
        let large = "x".repeat(3000);
        for data in ["y", &large, &large, "z"] {
            collect(&mut users, &mut pool, "ann", "t", data);
        }
        assert_eq!(users.batches.iter().map(Batch::len).collect::<Vec<_>>(), [3001, 3001]);
        assert_eq!(tick(&mut users, &mut pool).len(), 4);
    }
}
