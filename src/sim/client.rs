//! One simulated client: connects, asks, reads at its pace, misbehaves in its manner, leaves, comes again.

use super::book::{BROADCAST, topic_name};
use super::line::Line;
use super::machine::{Machine, trace};
use super::reader::{Heard, KEY, Question};
use super::ring::SharedLine;
use crate::clock::Time;
use crate::dialect::DialectId;
use std::collections::VecDeque;
use std::rc::Rc;

/// How it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// All that is there, within 3 ms.
    Fast,
    /// A few bytes now and then.
    Slow,
    /// Fast, with long pauses.
    Stalling,
    /// Not at all, once it has subscribed to a few topics.
    Never,
}

/// How it behaves otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Good,
    /// As it should, a few bytes at a time.
    Bytewise,
    /// Sends a broken frame, then only listens.
    Breaks,
    /// Resets.
    Resets,
    /// Ends its side and goes on reading.
    HalfCloses,
    /// Is never heard of again.
    Vanishes,
    /// Does not finish its request.
    Mute,
    /// Pings and pings, and may not read.
    Floods,
}

/// How it is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// It stays.
    No,
    /// It sent a close frame and waits for the gateway's.
    Said,
    /// It sent a broken frame and must hear a close frame.
    Broke,
    /// It does nothing any more.
    Silent,
}

/// One client.
pub struct Client {
    index: usize,
    machine: Rc<Machine>,
    /// Its connection, if it has one.
    pub line: Option<SharedLine>,
    /// The shard it is on.
    pub shard: usize,
    /// How it reads.
    pub pace: Pace,
    dialect: DialectId,
    manner: Manner,
    leaving: Leaving,
    is_open: bool,
    close_heard: bool,
    /// Waits for each answer before the next question.
    is_patient: bool,
    awaited: usize,
    wanted: Vec<bool>,
    outbox: VecDeque<u8>,
    next_write: Time,
    next_read: Time,
    next_act: Time,
    next_ping: Time,
    leaves_at: Time,
    stalls_until: Time,
    reads_until: Time,
    /// Its socket takes a good part of a burst at once; with less, reading fast is not enough to keep up.
    has_room: bool,
    /// Every connection is to end.
    pub goes_home: bool,
    /// The gateway closes everybody.
    pub may_be_closed: bool,
}

/// What the world shall do for a client.
pub enum Wish {
    /// Nothing but look after its socket.
    Nothing,
    /// Connect it.
    Connect,
}

/// Send buffer with which a client that reads keeps up.
const ROOM_BYTES: usize = 2_000;

/// A client pings at least this often: well below any heartbeat timeout of a run, and seldom enough not to wake what was lost.
const PING_MS: u64 = 9000;

impl Client {
    /// A client that comes at `arrives`.
    pub fn new(index: usize, machine: Rc<Machine>, topics: usize, arrives: Time) -> Client {
        Client {
            index,
            line: None,
            shard: 0,
            pace: Pace::Fast,
            dialect: DialectId::Gpush,
            manner: Manner::Good,
            leaving: Leaving::No,
            is_open: false,
            close_heard: false,
            is_patient: false,
            awaited: 0,
            wanted: vec![false; topics],
            outbox: VecDeque::new(),
            next_write: Time::NEVER,
            next_read: Time::NEVER,
            next_act: arrives,
            next_ping: Time::NEVER,
            leaves_at: Time::NEVER,
            stalls_until: Time(0),
            reads_until: Time::NEVER,
            has_room: false,
            goes_home: false,
            may_be_closed: false,
            machine,
        }
    }

    /// When it does its next thing.
    pub fn wakes_at(&self) -> Time {
        let act = if self.line.is_none() && self.goes_home { Time::NEVER } else { self.next_act };
        let ping = if self.is_open && self.leaving == Leaving::No { self.next_ping } else { Time::NEVER };
        act.min(self.next_write).min(self.next_read).min(ping)
    }

    /// Whether it does all that a client should, and reads.
    pub fn is_exemplary(&self) -> bool {
        self.pace == Pace::Fast
            && self.has_room
            && matches!(self.manner, Manner::Good | Manner::Bytewise)
            && self.leaving == Leaving::No
    }

    /// It got a connection.
    pub fn connected(&mut self, shard: usize, line: SharedLine) {
        let now = self.machine.now();
        let m = self.machine.clone();
        self.shard = shard;
        self.pace = match m.within(0..=9) {
            0..=5 => Pace::Fast,
            6 => Pace::Slow,
            7..=8 => Pace::Stalling,
            _ => Pace::Never,
        };
        self.manner = match m.within(0..=19) {
            0..=9 => Manner::Good,
            10..=13 => Manner::Bytewise,
            14 => Manner::Breaks,
            15 => Manner::Resets,
            16 => Manner::HalfCloses,
            17 => Manner::Vanishes,
            18 => Manner::Mute,
            _ => Manner::Floods,
        };
        self.leaving = Leaving::No;
        self.has_room = line.borrow().send_buffer_bytes >= ROOM_BYTES;
        self.is_open = false;
        self.close_heard = false;
        self.is_patient = m.chance(500) && self.pace != Pace::Never;
        self.reads_until = Time::NEVER;
        self.stalls_until = Time(0);
        self.awaited = 0;
        self.wanted.fill(false);
        self.outbox.clear();
        self.next_read = Time::NEVER;
        self.next_act = Time::NEVER;
        self.next_ping = Time::NEVER;
        self.leaves_at = Time(now.0 + m.draw(|dice| dice.magnitude(1..=20_000)) * 1_000_000);
        line.borrow_mut().reader.misses_nothing = self.is_exemplary();
        self.dialect = if m.chance(450) { DialectId::Centrifugo } else { DialectId::Gpush };
        line.borrow_mut().reader.speaks(self.dialect);
        self.line = Some(line);
        let deflate = if m.chance(250) { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let path = if self.dialect == DialectId::Centrifugo { "/connection/websocket" } else { "/ws" };
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{deflate}\r\n"
        );
        if self.manner == Manner::Mute {
            request.truncate(m.within(0..=request.len() as u64 - 1) as usize);
            self.leaving = Leaving::Silent;
        }
        trace!(m, "client {} on shard {shard}: {:?} {:?} {:?}", self.index, self.dialect, self.pace, self.manner);
        self.say(request.as_bytes());
    }

    /// Something came for it, or the end.
    pub fn has_news(&mut self) {
        let now = self.machine.now();
        let is_closed = self.line.as_ref().is_some_and(|line| line.borrow().near_closed);
        if self.next_read != Time::NEVER || (self.is_deaf(now) && !is_closed) {
            return;
        }
        let wait_us = match self.pace {
            Pace::Slow => self.machine.within(200..=50_000),
            _ => self.machine.within(1..=3_000),
        };
        self.next_read = Time(now.0 + wait_us * 1000).max(self.stalls_until);
    }

    /// Does what is due.
    ///
    /// # Panics
    /// If the gateway broke a promise to it.
    pub fn step(&mut self, admitted_before: impl Fn(usize) -> u32) -> Wish {
        let now = self.machine.now();
        let Some(line) = self.line.clone() else {
            self.next_act = Time::NEVER;
            return Wish::Connect;
        };
        if now >= self.next_write {
            self.write(&mut line.borrow_mut());
        }
        if now >= self.next_read {
            self.next_read = Time::NEVER;
            self.read(&line);
        }
        if self.line.is_none() {
            return Wish::Nothing;
        }
        if self.is_open && now >= self.next_ping && self.leaving == Leaving::No {
            self.ask(&[Question::Ping], &line, &admitted_before);
        }
        if now >= self.next_act {
            self.next_act = Time::NEVER;
            self.act(&line, &admitted_before);
        }
        Wish::Nothing
    }

    /// The connection could not be had: it tries again.
    pub fn was_refused(&mut self) {
        self.next_act = Time(self.machine.now().0 + self.machine.within(1..=200) * 1_000_000);
    }

    /// Ends the connection, whatever it is in the middle of.
    pub fn hang_up(&mut self) {
        if let Some(line) = self.line.take() {
            line.borrow_mut().reader.misses_nothing = false;
            line.borrow_mut().close_far();
        }
        self.retire();
    }

    /// Leaves as one should: close frame first. Those who can't any more hang up.
    pub fn go_home(&mut self) {
        self.goes_home = true;
        self.stalls_until = Time(0);
        let Some(line) = self.line.clone() else { return };
        if self.is_open && self.leaving == Leaving::No && self.pace != Pace::Never && self.machine.chance(700) {
            self.say_goodbye(&line);
        } else {
            self.hang_up();
        }
    }

    /// The client says nothing more of its own, but its pings.
    pub fn settle(&mut self) {
        if self.line.is_some() {
            self.next_act = Time::NEVER;
        }
        self.leaves_at = Time::NEVER;
        self.stalls_until = Time(0);
        if self.next_read != Time::NEVER {
            self.next_read = self.machine.now();
        }
    }

    /// What it misses now that everything is at rest.
    ///
    /// # Panics
    /// If it does miss something.
    pub fn must_be_content(&self) {
        let Some(line) = &self.line else { return };
        let line = line.borrow();
        if !self.is_exemplary() || !self.is_open || line.cut || line.near_shut {
            return;
        }
        if let Err(what) = line.reader.complete(&self.machine.book.borrow()) {
            panic!("client {}: {what}", self.index);
        }
        let since = line.reader.waiting_since().unwrap_or(Time::NEVER);
        let waited_ms = self.machine.now().since_ns(since) / 1_000_000;
        assert!(waited_ms < 1_000, "client {}: a question is unanswered since {waited_ms} ms", self.index);
    }

    fn is_deaf(&self, now: Time) -> bool {
        self.pace == Pace::Never && now >= self.reads_until
    }

    fn retire(&mut self) {
        self.line = None;
        self.is_open = false;
        self.outbox.clear();
        self.next_write = Time::NEVER;
        self.next_read = Time::NEVER;
        self.next_act = Time(self.machine.now().0 + self.machine.draw(|dice| dice.magnitude(1..=500)) * 1_000_000);
    }

    fn say(&mut self, bytes: &[u8]) {
        self.outbox.extend(bytes);
        if self.next_write == Time::NEVER {
            self.next_write = Time(self.machine.now().0 + self.machine.within(0..=50_000));
        }
    }

    fn write(&mut self, line: &mut Line) {
        let most = match self.manner {
            Manner::Bytewise => self.machine.within(1..=9) as usize,
            _ if self.machine.chance(200) => self.machine.within(1..=64) as usize,
            _ => usize::MAX,
        };
        let length = most.min(self.outbox.len());
        let bytes: Vec<u8> = self.outbox.drain(..length).collect();
        line.write(&bytes);
        self.next_write = if self.outbox.is_empty() {
            Time::NEVER
        } else {
            Time(self.machine.now().0 + self.machine.draw(|dice| dice.magnitude(1_000..=3_000_000)))
        };
    }

    fn read(&mut self, line: &SharedLine) {
        let most =
            if self.pace == Pace::Slow && !self.machine.calm.get() { self.machine.within(1..=300) } else { u64::MAX };
        if self.is_deaf(self.machine.now()) {
            if line.borrow().near_closed {
                self.hang_up();
            }
            return;
        }
        line.borrow_mut().take(most);
        loop {
            let heard = {
                let mut line = line.borrow_mut();
                let position = line.read;
                line.reader.hear(position)
            };
            let Some(heard) = heard else { break };
            self.hear(heard, line);
        }
        if line.borrow().at_end() {
            self.ended(line);
        } else if line.borrow().read < line.borrow().sent {
            self.has_news();
        }
    }

    fn hear(&mut self, heard: Heard, line: &SharedLine) {
        trace!(self.machine, "client {} hears {heard:?}", self.index);
        let now = self.machine.now();
        match heard {
            Heard::Upgraded => self.ask(&[Question::Connect], line, &|_| 0),
            Heard::Ping => {
                if self.leaving == Leaving::No {
                    let pong = frame(0x81, b"{}", &self.machine);
                    self.say(&pong);
                }
            }
            Heard::Welcome => {
                self.awaited = 0;
                self.is_open = true;
                self.next_ping = now.plus_ms(PING_MS);
                self.reads_until = now.plus_ms(self.machine.within(0..=1_500));
                self.plan();
            }
            Heard::Answer(_) => {
                self.awaited = self.awaited.saturating_sub(1);
                if self.is_patient && self.next_act == Time::NEVER {
                    self.plan();
                }
            }
            Heard::ControlPong => {}
            Heard::Refusal(status) => {
                let reading = self.manner == Manner::Mute || self.may_be_closed;
                assert!(reading, "client {}: its handshake was refused with {status}", self.index);
            }
            Heard::Close(code) => {
                self.close_heard = true;
                if self.leaving == Leaving::Broke && self.pace == Pace::Fast && !self.may_be_closed {
                    assert!(code == 1002, "client {}: a broken frame was answered with {code}", self.index);
                }
                if self.leaving != Leaving::Said && self.machine.chance(700) {
                    self.say(&frame(0x88, &code.to_be_bytes(), &self.machine));
                }
                let excused = self.may_be_closed || line.borrow().cut || !self.is_exemplary();
                assert!(excused, "client {}: closed with {code} for nothing", self.index);
                line.borrow_mut().reader.misses_nothing = false;
                self.leaving = Leaving::Silent;
            }
        }
    }

    fn ended(&mut self, line: &SharedLine) {
        {
            let line = line.borrow();
            let cut_within = line.cut_short || !line.reader.is_whole();
            let reads = self.pace == Pace::Fast && !line.cut && !self.may_be_closed;
            let owed_a_word = matches!(self.leaving, Leaving::Broke | Leaving::Said) && self.is_open;
            assert!(
                self.close_heard || cut_within || !reads || !owed_a_word,
                "client {}: the end came without a close frame{}",
                self.index,
                if line.reset_by_gateway { ", by a reset" } else { "" }
            );
            let for_nothing = reads && self.is_exemplary() && !self.close_heard;
            assert!(!for_nothing, "client {}: it was cut off for nothing", self.index);
        }
        trace!(self.machine, "client {} sees the end", self.index);
        self.hang_up();
    }

    /// Decides when to do the next thing.
    fn plan(&mut self) {
        if self.machine.calm.get() || self.leaving != Leaving::No {
            return;
        }
        let pause_us = match self.manner {
            Manner::Floods => self.machine.draw(|dice| dice.magnitude(100..=20_000)),
            _ => self.machine.draw(|dice| dice.magnitude(100..=1_500_000)),
        };
        self.next_act = Time(self.machine.now().0 + pause_us * 1000);
    }

    fn act(&mut self, line: &SharedLine, admitted_before: &dyn Fn(usize) -> u32) {
        if self.leaving != Leaving::No {
            // Who vanished leaves the gateway to find out by itself.
            return if self.manner == Manner::Vanishes { self.retire() } else { self.hang_up() };
        }
        if !self.is_open {
            return;
        }
        if self.machine.now() >= self.leaves_at || (self.manner != Manner::Good && self.machine.chance(30)) {
            self.part(line);
            return;
        }
        if self.pace == Pace::Stalling && self.machine.chance(100) {
            let ms = self.machine.draw(|dice| dice.magnitude(50..=4_000));
            self.stalls_until = self.machine.now().plus_ms(ms);
        }
        match self.question() {
            None => self.ping_control(line),
            Some(first) => {
                let mut questions = vec![first];
                // Centrifugo takes several in one message.
                while self.dialect == DialectId::Centrifugo && questions.len() < 4 && self.machine.chance(400) {
                    questions.extend(self.question());
                }
                self.ask(&questions, line, admitted_before);
            }
        }
        if !self.is_patient || self.awaited == 0 {
            self.plan();
        }
    }

    /// What to ask next; `None`: a control ping.
    fn question(&mut self) -> Option<Question> {
        let topic = self.machine.within(1..=self.wanted.len() as u64 - 1) as usize;
        let subscribed = self.wanted[topic];
        Some(match self.machine.within(0..=9) {
            _ if self.manner == Manner::Floods => return None,
            0..=4 if !subscribed => Question::Subscribe(topic),
            0 => Question::Subscribe(topic),
            5..=6 => Question::Unsubscribe(topic),
            1..=4 | 7 => Question::Ping,
            8 => Question::Nonsense,
            _ => return None,
        })
    }

    fn ping_control(&mut self, line: &SharedLine) {
        line.borrow_mut().reader.pinged();
        let ping = frame(0x89, b"?", &self.machine);
        self.say(&ping);
    }

    /// Asks in one message.
    fn ask(&mut self, questions: &[Question], line: &SharedLine, admitted_before: &dyn Fn(usize) -> u32) {
        let now = self.machine.now();
        let mut lines = Vec::new();
        for &question in questions {
            let admitted = match question {
                Question::Subscribe(topic) => {
                    debug_assert!(topic != BROADCAST);
                    self.wanted[topic] = true;
                    admitted_before(topic)
                }
                Question::Unsubscribe(topic) => {
                    self.wanted[topic] = false;
                    0
                }
                _ => 0,
            };
            trace!(self.machine, "client {} asks {question:?}", self.index);
            let id = line.borrow_mut().reader.asked(question, now, admitted);
            self.awaited += 1;
            lines.push(match self.dialect {
                DialectId::Centrifugo => by_number(id, question),
                _ => by_code(question),
            });
        }
        self.next_ping = now.plus_ms(PING_MS);
        let text = lines.join("\n");
        let bytes = if text.len() > 4 && self.machine.chance(100) {
            // In two fragments with a ping between, as RFC 6455 §5.4 allows.
            line.borrow_mut().reader.pinged();
            let (first, second) = text.as_bytes().split_at(4);
            let m = &self.machine;
            [frame(0x01, first, m), frame(0x89, b"", m), frame(0x80, second, m)].concat()
        } else {
            frame(0x81, text.as_bytes(), &self.machine)
        };
        self.say(&bytes);
    }

    /// Leaves, in its manner.
    fn part(&mut self, line: &SharedLine) {
        trace!(self.machine, "client {} leaves", self.index);
        line.borrow_mut().reader.misses_nothing = false;
        // However it goes, some day it gives up.
        self.next_act = self.machine.now().plus_ms(self.machine.within(3_000..=6_000));
        match self.manner {
            Manner::Breaks => {
                self.leaving = Leaving::Broke;
                let broken: [&[u8]; 3] =
                    [&[0x81, 0x02, b'h', b'i'], &[0x83, 0x80, 0, 0, 0, 0], &[0xa1, 0x80, 0, 0, 0, 0]];
                let bytes = self.machine.draw(|dice| dice.pick(&broken));
                self.say(bytes);
                // It need not stop there. What the gateway leaves unread when it closes resets the connection.
                let more = self.machine.draw(|dice| dice.magnitude(1..=2_000)) as usize;
                self.say(&vec![b'!'; more]);
            }
            Manner::Resets => {
                line.borrow_mut().reset();
                self.retire();
            }
            Manner::HalfCloses => {
                self.leaving = Leaving::Silent;
                self.outbox.clear();
                self.next_write = Time::NEVER;
                line.borrow_mut().half_close();
            }
            Manner::Vanishes => {
                self.leaving = Leaving::Silent;
                self.pace = Pace::Never;
                self.next_write = Time::NEVER;
                self.next_read = Time::NEVER;
                self.outbox.clear();
            }
            _ if self.machine.chance(600) => self.say_goodbye(line),
            _ => self.hang_up(),
        }
    }

    fn say_goodbye(&mut self, line: &SharedLine) {
        self.leaving = Leaving::Said;
        line.borrow_mut().reader.misses_nothing = false;
        let goodbye = frame(0x88, &1000u16.to_be_bytes(), &self.machine);
        self.say(&goodbye);
        if self.pace != Pace::Never {
            self.has_news();
        }
    }
}

/// A question as gpush's clients ask it.
fn by_code(question: Question) -> String {
    let about = |code: u8, topic: usize| format!(r#"{{"code":{code},"topic":"{}"}}"#, topic_name(topic));
    match question {
        Question::Subscribe(topic) => about(1, topic),
        Question::Unsubscribe(topic) => about(2, topic),
        Question::Ping => "ping".to_owned(),
        Question::Nonsense => r#"{"code":"one"}"#.to_owned(),
        Question::Connect => unreachable!("asked of Centrifugo alone"),
    }
}

/// A question as Centrifugo's clients ask it.
fn by_number(id: u64, question: Question) -> String {
    let about = |what: &str, topic: usize| format!(r#""{what}":{{"channel":"{}"}}"#, topic_name(topic));
    let command = match question {
        Question::Connect => r#""connect":{"name":"sim"}"#.to_owned(),
        Question::Subscribe(topic) => about("subscribe", topic),
        Question::Unsubscribe(topic) => about("unsubscribe", topic),
        Question::Ping => r#""rpc":{"method":"?"}"#.to_owned(),
        Question::Nonsense => r#""publish":{"channel":"x","data":{}}"#.to_owned(),
    };
    format!(r#"{{{command},"id":{id}}}"#)
}

/// A client's frame, masked (RFC 6455 §5.3). `first`: FIN and opcode.
fn frame(first: u8, payload: &[u8], machine: &Machine) -> Vec<u8> {
    let key = (machine.draw(|dice| dice.bits()) as u32).to_be_bytes();
    let mut bytes = match payload.len() {
        length @ 0..=125 => vec![first, 0x80 | length as u8],
        length => [&[first, 0xfe][..], &(length as u16).to_be_bytes()].concat(),
    };
    bytes.extend(key);
    bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}
