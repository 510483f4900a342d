//! The far end's ear: reads every byte the kernel took for one client, at the moment it took it, and holds it against the
//! [`Book`].
//!
//! It listens to what is *sent*, not to what the client gets around to reading, so that clients which never read are
//! checked as well. `docs/PROTOCOL.md` is what it expects; it shares no code with the gateway's own encoder. gpush stands for
//! dialects that frame every message and answer in order, Centrifugo for those that join messages and answer by number.

use super::book::{BROADCAST, Book, topic_name};
use crate::clock::Time;
use crate::dialect::DialectId;
use crate::ids::ShardId;
use serde_json::Value;
use std::collections::VecDeque;

/// RFC 6455 §1.3's example, so that the answer is known without computing it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const WELCOME: &str = r#"{"code":20000,"message":"连接成功"}"#;
const SUBSCRIBED: &str = r#"{"code":20001,"message":"订阅成功"}"#;
const UNSUBSCRIBED: &str = r#"{"code":20002,"message":"取消订阅成功"}"#;
const NONSENSE: &str = r#"{"code":30001,"message":"操作有误","detail":"数据格式不正确"}"#;

/// What a client asks, in order; gpush's answers come in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Centrifugo's first command.
    Connect,
    /// Take part in a topic.
    Subscribe(usize),
    /// Leave it.
    Unsubscribe(usize),
    /// The text `ping`; with Centrifugo a method that is not there.
    Ping,
    /// A text that means nothing; with Centrifugo something forbidden.
    Nonsense,
}

/// What the client hears, for it to act upon once it has read that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// 101, with Centrifugo.
    Upgraded,
    /// gpush's greeting, or the answer to `connect`.
    Welcome,
    /// The gateway asks whether the client lives.
    Ping,
    /// An HTTP status that is not 101.
    Refusal(u16),
    /// The answer to the oldest question.
    Answer(Question),
    /// A control frame answering ours.
    ControlPong,
    /// Close, with its code.
    Close(u16),
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    id: u64,
    question: Question,
    at: Time,
    /// Messages of the topic that were certainly behind every shard by then.
    admitted: u32,
}

/// A subscription as the wire shows it.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Messages from this place on are the client's for certain.
    certain_from: u32,
    /// Messages before this place can't be.
    possible_from: u32,
    /// The last one that came.
    last: Option<u32>,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Frames,
    /// After a close frame or an HTTP refusal: nothing may follow.
    Over,
}

/// One connection's incoming stream.
pub struct Reader {
    shard: ShardId,
    broadcasts: u32,
    dialect: DialectId,
    deflates: bool,
    stage: Stage,
    welcomed: bool,
    questions: u64,
    partial: Vec<u8>,
    position: u64,
    asked: VecDeque<Asked>,
    control_pings: usize,
    windows: Vec<Option<Window>>,
    highest: Vec<Option<u32>>,
    heard: VecDeque<(u64, Heard)>,
    /// The client reads all the time, so it may miss nothing.
    pub misses_nothing: bool,
}

impl Reader {
    /// The ear of a client that connects to `shard`; the first `broadcasts` broadcasts were over by then.
    pub fn new(shard: ShardId, topics: usize, broadcasts: u32) -> Reader {
        Reader {
            shard,
            broadcasts,
            dialect: DialectId::Gpush,
            deflates: false,
            stage: Stage::Head,
            welcomed: false,
            questions: 0,
            partial: Vec::new(),
            position: 0,
            asked: VecDeque::new(),
            control_pings: 0,
            windows: vec![None; topics],
            highest: vec![None; topics],
            heard: VecDeque::new(),
            misses_nothing: false,
        }
    }

    /// The client speaks another dialect than gpush.
    pub fn speaks(&mut self, dialect: DialectId) {
        self.dialect = dialect;
    }

    /// The client asked, by the number that is returned. `admitted`: messages of the topic that every shard had taken out of its
    /// queue by then.
    pub fn asked(&mut self, question: Question, now: Time, admitted: u32) -> u64 {
        self.questions += 1;
        self.asked.push_back(Asked { id: self.questions, question, at: now, admitted });
        self.questions
    }

    /// Messages of which something came, in a frame that is not whole.
    pub fn unfinished_messages(&self) -> usize {
        self.partial.iter().filter(|b| **b == b'@').count()
    }

    /// The client sent a control ping.
    pub fn pinged(&mut self) {
        self.control_pings += 1;
    }

    /// Since when the oldest question waits for its answer.
    pub fn waiting_since(&self) -> Option<Time> {
        self.asked.front().map(|asked| asked.at)
    }

    /// Whether the stream stands between two frames.
    pub fn is_whole(&self) -> bool {
        self.partial.is_empty()
    }

    /// Whether the handshake was answered, with whatever.
    pub fn is_greeted(&self) -> bool {
        self.stage != Stage::Head
    }

    /// What was heard up to byte `position` of the stream.
    pub fn hear(&mut self, position: u64) -> Option<Heard> {
        let (end, _) = self.heard.front()?;
        (*end <= position).then(|| self.heard.pop_front().expect("it was looked at").1)
    }

    /// Takes bytes as the kernel takes them.
    ///
    /// # Errors
    /// The promise that they break.
    pub fn feed(&mut self, bytes: &[u8], now: Time, book: &mut Book) -> Result<(), String> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.stage == Stage::Over {
            return Err(format!("{} bytes after the last word", bytes.len()));
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(bytes);
        let mut start = 0;
        while start < partial.len() {
            let rest = &partial[start..];
            let taken = match self.stage {
                Stage::Head => self.head(rest)?,
                Stage::Frames => self.frame(rest, now, book)?,
                Stage::Over => return Err(format!("{} bytes after the last word", rest.len())),
            };
            if taken == 0 {
                break;
            }
            start += taken;
        }
        partial.drain(..start);
        self.partial = partial;
        Ok(())
    }

    /// The connection is gone. What its shard had handed out by `decided` was the client's, but for the `broken` messages of its
    /// last send, which may count either way; what came later may have been.
    pub fn ended(&mut self, decided: Time, broken: u64, book: &mut Book) {
        // The gateway may have acted upon questions whose answers were stuck behind what the client did not read.
        if !self.welcomed {
            self.open_window(BROADCAST, self.broadcasts, book);
        }
        let mut left = vec![false; self.windows.len()];
        for asked in std::mem::take(&mut self.asked) {
            if let Question::Unsubscribe(topic) = asked.question {
                left[topic] = true;
            }
            match asked.question {
                Question::Subscribe(topic) => self.open_window(topic, asked.admitted, book),
                Question::Unsubscribe(topic) => self.close_window(topic, book),
                Question::Connect | Question::Ping | Question::Nonsense => {}
            }
        }
        let mut owed = 0;
        for (topic, window) in self.windows.iter().enumerate() {
            if let (Some(window), false) = (window, left[topic]) {
                let next = window.last.map_or(window.certain_from, |last| last + 1);
                owed += u64::from(book.flushed(self.shard, topic, decided).saturating_sub(next));
            }
        }
        book.tally(self.shard).missed_min += owed.saturating_sub(broken);
        for topic in 0..self.windows.len() {
            self.close_window(topic, book);
        }
    }

    /// A client that was always there, at rest: has it got everything?
    ///
    /// # Errors
    /// What it misses.
    pub fn complete(&self, book: &Book) -> Result<(), String> {
        for (topic, window) in self.windows.iter().enumerate() {
            let Some(window) = window else { continue };
            let next = window.last.map_or(window.certain_from, |last| last + 1);
            if next < book.admitted(topic) {
                return Err(format!("topic {topic} ended at {next}, {} were admitted", book.admitted(topic)));
            }
        }
        Ok(())
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(0) };
        let head = &bytes[..end];
        let status = head.get(9..12).and_then(|s| std::str::from_utf8(s).ok()?.parse::<u16>().ok());
        match status {
            Some(101) => {
                if !head.windows(ACCEPT.len()).any(|w| w == ACCEPT) {
                    return Err("101 without the right Sec-WebSocket-Accept".to_owned());
                }
                self.stage = Stage::Frames;
                self.position += end as u64 + 4;
                self.deflates = head.windows(b"permessage-deflate".len()).any(|w| w == b"permessage-deflate");
                if self.dialect == DialectId::Centrifugo {
                    self.heard.push_back((self.position, Heard::Upgraded));
                }
                Ok(end + 4)
            }
            Some(status @ 400..=599) => {
                // The body follows until the end of the stream; it is not looked at.
                self.stage = Stage::Over;
                self.position += bytes.len() as u64;
                self.heard.push_back((self.position, Heard::Refusal(status)));
                Ok(bytes.len())
            }
            _ => Err(format!("not a response: {:?}", String::from_utf8_lossy(&head[..head.len().min(40)]))),
        }
    }

    /// Reads one frame, if it is there: RFC 6455 §5.2, as a server sends it.
    fn frame(&mut self, bytes: &[u8], now: Time, book: &mut Book) -> Result<usize, String> {
        let &[first, second, ..] = bytes else { return Ok(0) };
        let broken = |what: &str| Err(format!("{what}: {:02x?}", &bytes[..bytes.len().min(16)]));
        let is_deflated = first == 0xc1 && self.deflates && self.dialect == DialectId::Centrifugo;
        if first & 0xf0 != 0x80 && !is_deflated {
            return broken("a frame that is not a whole message without extensions");
        }
        let (header, length_min, length) = match second {
            0..=125 => (2, 0, u64::from(second)),
            126 if bytes.len() >= 4 => (4, 126, u64::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            127 if bytes.len() >= 10 => (10, 65_536, u64::from_be_bytes(bytes[2..10].try_into().expect("eight bytes"))),
            126 | 127 => return Ok(0),
            _ => return broken("a masked frame from a server"),
        };
        if length < length_min {
            return broken("a length not in its shortest form");
        }
        if length > 1 << 20 {
            return broken("a frame of absurd length");
        }
        let end = header + length as usize;
        if bytes.len() < end {
            return Ok(0);
        }
        self.position += end as u64;
        let payload = &bytes[header..end];
        match first & 0x0f {
            1 if is_deflated => self.lines(&unstored(payload)?, now, book)?,
            1 if self.dialect == DialectId::Centrifugo => self.lines(payload, now, book)?,
            1 => self.text(payload, now, book)?,
            8 => {
                let code = payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                self.stage = Stage::Over;
                self.heard.push_back((self.position, Heard::Close(code)));
            }
            10 if self.control_pings > 0 => {
                // One pong may answer several pings (RFC 6455 §5.5.3), so the count only bounds.
                self.control_pings -= 1;
                self.heard.push_back((self.position, Heard::ControlPong));
            }
            10 => return broken("a pong that nobody asked for"),
            _ => return broken("an opcode the gateway never sends"),
        }
        Ok(end)
    }

    fn text(&mut self, payload: &[u8], now: Time, book: &mut Book) -> Result<(), String> {
        if !self.welcomed {
            if payload != WELCOME.as_bytes() {
                return Err(format!("the first frame is {:?}", String::from_utf8_lossy(payload)));
            }
            self.welcomed = true;
            self.heard.push_back((self.position, Heard::Welcome));
            self.open_window(BROADCAST, self.broadcasts, book);
            return Ok(());
        }
        if payload.first() == Some(&b'@') {
            return self.message(payload, book);
        }
        let Some(asked) = self.asked.pop_front() else {
            return Err(format!("an answer to no question: {:?}", String::from_utf8_lossy(payload)));
        };
        let expected = match asked.question {
            Question::Subscribe(_) => SUBSCRIBED,
            Question::Unsubscribe(_) => UNSUBSCRIBED,
            Question::Ping => "pong",
            Question::Nonsense => NONSENSE,
            Question::Connect => unreachable!("asked of Centrifugo alone"),
        };
        if payload != expected.as_bytes() {
            return Err(format!("{:?} was answered with {:?}", asked.question, String::from_utf8_lossy(payload)));
        }
        let waited_ms = now.since_ns(asked.at) / 1_000_000;
        if self.misses_nothing && waited_ms > ANSWER_MS_MAX {
            return Err(format!("{:?} was answered after {waited_ms} ms", asked.question));
        }
        match asked.question {
            Question::Subscribe(topic) => self.open_window(topic, asked.admitted, book),
            Question::Unsubscribe(topic) => self.close_window(topic, book),
            _ => {}
        }
        self.heard.push_back((self.position, Heard::Answer(asked.question)));
        Ok(())
    }

    /// Replies and pushes of Centrifugo, one a line.
    fn lines(&mut self, payload: &[u8], now: Time, book: &mut Book) -> Result<(), String> {
        let shares = payload.contains(&b'\n');
        for line in payload.split(|b| *b == b'\n') {
            let said: Value = serde_json::from_slice(line)
                .map_err(|e| format!("not JSON, {e}: {:?}", String::from_utf8_lossy(line)))?;
            match (&said["push"], said["id"].as_u64()) {
                (Value::Object(_), None) => {
                    self.push(&said["push"], book)?;
                    book.tally(self.shard).joined += u64::from(shares);
                }
                (_, Some(id)) => self.reply(&said, id, now, book)?,
                _ if line == b"{}" && self.welcomed => self.heard.push_back((self.position, Heard::Ping)),
                _ => return Err(format!("neither push nor reply nor ping: {said}")),
            }
        }
        Ok(())
    }

    fn push(&mut self, push: &Value, book: &mut Book) -> Result<(), String> {
        if !self.welcomed {
            return Err(format!("before the answer to connect: {push}"));
        }
        let (data, channel) = match (&push["pub"]["data"], &push["message"]["data"]) {
            (Value::String(data), Value::Null) => (data, push["channel"].as_str().unwrap_or_default()),
            (Value::Null, Value::String(data)) => (data, ""),
            _ => return Err(format!("neither a publication nor a message: {push}")),
        };
        let (topic, _) = book.read(data.as_bytes())?;
        if channel != topic_name(topic) {
            return Err(format!("a message of topic {topic} came as {push}"));
        }
        self.message(data.as_bytes(), book)
    }

    fn reply(&mut self, said: &Value, id: u64, now: Time, book: &mut Book) -> Result<(), String> {
        let place = self.asked.iter().position(|asked| asked.id == id);
        let asked = place.and_then(|place| self.asked.remove(place));
        let asked = asked.ok_or_else(|| format!("an answer to no question: {said}"))?;
        let place = place.unwrap_or_default();
        let error = said["error"]["code"].as_u64();
        let result = |name: &str| error.is_none() && said[name].is_object();
        let fits = match asked.question {
            Question::Connect => result("connect"),
            Question::Unsubscribe(_) => result("unsubscribe"),
            Question::Ping => error == Some(104),
            Question::Nonsense => error == Some(103),
            // Subscribed already, or about to be.
            Question::Subscribe(topic) if error == Some(105) => {
                let earlier = self.asked.iter().take(place);
                self.windows[topic].is_some() || earlier.into_iter().any(|a| a.question == asked.question)
            }
            Question::Subscribe(_) => result("subscribe"),
        };
        if !fits {
            return Err(format!("{:?} was answered with {said}", asked.question));
        }
        let waited_ms = now.since_ns(asked.at) / 1_000_000;
        if self.misses_nothing && waited_ms > ANSWER_MS_MAX {
            return Err(format!("{:?} was answered after {waited_ms} ms", asked.question));
        }
        let heard = match asked.question {
            Question::Connect => {
                self.welcomed = true;
                self.open_window(BROADCAST, self.broadcasts, book);
                Heard::Welcome
            }
            question => Heard::Answer(question),
        };
        match asked.question {
            Question::Subscribe(topic) if error.is_none() => self.open_window(topic, asked.admitted, book),
            Question::Unsubscribe(topic) => self.close_window(topic, book),
            _ => {}
        }
        self.heard.push_back((self.position, heard));
        Ok(())
    }

    fn message(&mut self, payload: &[u8], book: &mut Book) -> Result<(), String> {
        let (topic, place) = book.read(payload)?;
        let Some(window) = &mut self.windows[topic] else {
            return Err(format!("message {place} of topic {topic}, which is not subscribed"));
        };
        if let Some(highest) = self.highest[topic]
            && place <= highest
        {
            return Err(format!("message {place} of topic {topic} after {highest}: twice, or out of order"));
        }
        let next = window.last.map(|last| last + 1);
        let missed = place.saturating_sub(next.unwrap_or(window.certain_from));
        let missed_max = place.saturating_sub(next.unwrap_or(window.possible_from));
        window.last = Some(place);
        self.highest[topic] = Some(place);
        if self.misses_nothing && missed > 0 {
            return Err(format!(
                "{missed} messages of topic {topic} before {place} did not come, and this client reads"
            ));
        }
        let tally = book.tally(self.shard);
        tally.sent += 1;
        tally.missed_min += u64::from(missed);
        tally.missed_max += u64::from(missed_max);
        Ok(())
    }

    fn open_window(&mut self, topic: usize, possible_from: u32, book: &Book) {
        let certain_from = book.admitted(topic);
        self.windows[topic].get_or_insert(Window { certain_from, possible_from, last: None });
    }

    fn close_window(&mut self, topic: usize, book: &mut Book) {
        if let Some(window) = self.windows[topic].take() {
            let next = window.last.map_or(window.possible_from, |last| last + 1);
            let missed_max = book.admitted(topic).saturating_sub(next);
            book.tally(self.shard).missed_max += u64::from(missed_max);
        }
    }
}

/// What stored blocks hold (RFC 1951 §3.2.4), up to the one whose lengths are left out (RFC 7692 §7.2.1).
fn unstored(mut payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    loop {
        match *payload {
            [0] => return Ok(all),
            [0, low, high, not_low, not_high, ref rest @ ..] if (low, high) == (!not_low, !not_high) => {
                let length = usize::from(u16::from_le_bytes([low, high]));
                let (block, rest) = rest.split_at_checked(length).ok_or("a stored block that is cut off")?;
                all.extend_from_slice(block);
                payload = rest;
            }
            _ => return Err(format!("no stored block: {:02x?}", &payload[..payload.len().min(16)])),
        }
    }
}

/// A client that reads has its answer within this, whatever shards and control were held up by.
pub const ANSWER_MS_MAX: u64 = 8000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Offset};

    fn text(payload: &[u8]) -> Vec<u8> {
        let mut frame = match payload.len() {
            0..=125 => vec![0x81, payload.len() as u8],
            n => [&[0x81, 126][..], &(n as u16).to_be_bytes()].concat(),
        };
        frame.extend_from_slice(payload);
        frame
    }

    fn greeted(book: &mut Book) -> Reader {
        let mut reader = Reader::new(ShardId(0), book.topics(), 0);
        let head = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        reader.feed(head, Time(0), book).unwrap();
        reader.feed(&text(WELCOME.as_bytes()), Time(0), book).unwrap();
        assert_eq!(reader.hear(u64::MAX), Some(Heard::Welcome));
        reader
    }

    fn subscribed(book: &mut Book) -> Reader {
        let mut reader = greeted(book);
        reader.asked(Question::Subscribe(1), Time(0), 0);
        reader.feed(&text(SUBSCRIBED.as_bytes()), Time(0), book).unwrap();
        reader
    }

    fn published(book: &mut Book, count: u64) -> Vec<Vec<u8>> {
        (1..=count)
            .map(|n| {
                let (number, payload) = book.write(1, 150);
                book.admit(number, Epoch(1), Offset(n));
                text(&payload)
            })
            .collect()
    }

    #[test]
    fn a_stream_reads_alike_byte_by_byte() {
        let mut book = Book::new(2, 1);
        let mut reader = subscribed(&mut book);
        let bytes = published(&mut book, 3).concat();
        for byte in &bytes {
            reader.feed(&[*byte], Time(0), &mut book).unwrap();
        }
        assert!(reader.is_whole());
        assert_eq!(book.tallies[0].sent, 3);
        reader.complete(&book).unwrap();
    }

    #[test]
    fn swaps_repeats_and_gaps_are_seen() {
        for (order, said) in [(&[1, 0][..], "out of order"), (&[0, 0], "twice"), (&[0, 2], "did not come")] {
            let mut book = Book::new(2, 1);
            let mut reader = subscribed(&mut book);
            reader.misses_nothing = said == "did not come";
            let frames = published(&mut book, 3);
            let result = order.iter().try_for_each(|i| reader.feed(&frames[*i], Time(0), &mut book));
            assert!(result.unwrap_err().contains(said), "{said}");
        }
    }

    #[test]
    fn what_did_not_come_is_bounded_from_both_sides() {
        let mut book = Book::new(2, 1);
        let mut reader = subscribed(&mut book);
        let frames = published(&mut book, 5);
        reader.feed(&frames[2], Time(0), &mut book).unwrap();
        assert_eq!((book.tallies[0].missed_min, book.tallies[0].missed_max), (2, 2));
        assert!(reader.complete(&book).unwrap_err().contains("ended at 3"));
        reader.ended(Time(0), 0, &mut book);
        assert_eq!((book.tallies[0].missed_min, book.tallies[0].missed_max), (2, 4));
    }

    #[test]
    fn a_cut_frame_shows_and_so_does_a_frame_within_a_frame() {
        let mut book = Book::new(2, 1);
        let mut reader = subscribed(&mut book);
        let frames = published(&mut book, 2);
        reader.feed(&frames[0][..20], Time(0), &mut book).unwrap();
        assert!(!reader.is_whole());
        let cut = [&frames[1][..], &frames[0][20..]].concat();
        assert!(reader.feed(&cut, Time(0), &mut book).is_err());
    }

    /// A Centrifugo client of topic 1.
    fn joined(book: &mut Book, deflate: &str) -> Reader {
        let mut reader = Reader::new(ShardId(0), book.topics(), 0);
        reader.speaks(DialectId::Centrifugo);
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{deflate}\r\n"
        );
        reader.feed(head.as_bytes(), Time(0), book).unwrap();
        assert_eq!(reader.hear(u64::MAX), Some(Heard::Upgraded));
        reader.asked(Question::Connect, Time(0), 0);
        reader.asked(Question::Subscribe(1), Time(0), 0);
        let answers = "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{}}";
        reader.feed(&text(answers.as_bytes()), Time(0), book).unwrap();
        assert_eq!(reader.hear(u64::MAX), Some(Heard::Welcome));
        reader
    }

    /// Lines of a channel with so many messages.
    fn pushed(book: &mut Book, channel: &str, count: u64) -> Vec<String> {
        (1..=count)
            .map(|n| {
                let (number, payload) = book.write(1, 30);
                book.admit(number, Epoch(1), Offset(n));
                let data = String::from_utf8(payload).unwrap();
                format!(r#"{{"push":{{"channel":"{channel}","pub":{{"data":"{data}","offset":{n}}}}}}}"#)
            })
            .collect()
    }

    #[test]
    fn messages_of_one_frame_count_once_it_is_whole_and_are_held_to_their_channel_and_order() {
        let mut book = Book::new(2, 1);
        let mut reader = joined(&mut book, "");
        let lines = pushed(&mut book, "topic-1", 3);
        let frame = text(lines.join("\n").as_bytes());
        let (most, last) = frame.split_at(frame.len() - 1);
        reader.feed(most, Time(0), &mut book).unwrap();
        assert_eq!((book.tallies[0].sent, reader.unfinished_messages()), (0, 3));
        reader.feed(last, Time(0), &mut book).unwrap();
        assert_eq!((book.tallies[0].sent, reader.unfinished_messages()), (3, 0));
        for (wrong, said) in [
            (format!("{}\n{}", lines[1], lines[0]), "out of order"),
            (format!("{}\n", lines[0]), "not JSON"),
            (lines[0].replace("topic-1", "topic-2"), "came as"),
            (r#"{"id":9,"subscribe":{}}"#.to_owned(), "no question"),
        ] {
            let mut book = Book::new(2, 1);
            let mut reader = joined(&mut book, "");
            pushed(&mut book, "topic-1", 3);
            let error = reader.feed(&text(wrong.as_bytes()), Time(0), &mut book).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn stored_blocks_are_read_where_compression_was_agreed() {
        let stored = |lines: &[String]| {
            let mut payload = Vec::new();
            for (n, line) in lines.iter().enumerate() {
                let length = line.len() as u16;
                payload.extend_from_slice(if n > 0 { &[1, 0, 0xfe, 0xff, b'\n'] } else { &[] });
                payload.push(0);
                payload.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
                payload.extend(line.bytes());
                payload.push(0);
            }
            let mut frame = text(&payload);
            frame[0] = 0xc1;
            frame
        };
        for agreed in ["Sec-WebSocket-Extensions: permessage-deflate\r\n", ""] {
            let mut book = Book::new(2, 1);
            let mut reader = joined(&mut book, agreed);
            let frame = stored(&pushed(&mut book, "topic-1", 2));
            assert_eq!(reader.feed(&frame, Time(0), &mut book).is_ok(), !agreed.is_empty());
            assert_eq!(book.tallies[0].sent, if agreed.is_empty() { 0 } else { 2 });
        }
    }

    #[test]
    fn nothing_may_follow_a_close_frame() {
        let mut book = Book::new(2, 1);
        let mut reader = greeted(&mut book);
        reader.feed(&[0x88, 2, 0x03, 0xe9], Time(0), &mut book).unwrap();
        assert_eq!(reader.hear(u64::MAX), Some(Heard::Close(1001)));
        assert!(reader.feed(&[0x81, 0], Time(0), &mut book).is_err());
    }
}
