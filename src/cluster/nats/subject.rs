//! Whom a publication is for, as a subject of NATS, and back.
//!
//! ```text
//! everyone        PREFIX.b
//! topic           PREFIX.t.news.sport         a topic's dots part the subject's tokens: PREFIX.t.news.> is a group of topics
//! user, topic     PREFIX.u.7.orders           the uid is one token
//! user, no topic  PREFIX.u.7
//! ```
//!
//! A byte that can't stand in a subject is `%` and two hexadecimal digits: `%` itself, `*`, `>`, blanks, control characters, whatever is
//! not ASCII; of dots only one that would make an empty token (the first, the last, one behind another) and those of a uid. So letters,
//! digits, `-`, `_`, `:`, `/` stay as they are, no two targets have one subject, and no target has two: NATS's permissions are by subject, and
//! whoever may not publish to `PREFIX.t.admin` is not to reach that topic as `PREFIX.t.%61dmin`.

use crate::dialect::TOPIC_BYTES_MAX;
use crate::frame::Target;
use std::sync::Arc;

/// Why a subject names nobody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SubjectError {
    #[error("it is none of PREFIX.b, PREFIX.t.TOPIC and PREFIX.u.UID[.TOPIC]")]
    Foreign,
    #[error("a % in it is not followed by two hexadecimal digits")]
    Escape,
    #[error("a name in it is not UTF-8")]
    NotUtf8,
    #[error("a name in it is longer than 255 bytes")]
    TooLong,
    #[error(
        "a name in it is escaped where it need not be, or not where it must be: `fanwire subject` says how it is written"
    )]
    Spelling,
}

/// Subjects of one cluster: each begins with the same prefix.
#[derive(Clone, Debug)]
pub(super) struct Subjects {
    prefix: Arc<str>, // Ends in a dot.
}

impl Subjects {
    /// Below `prefix`, a subject without wildcards.
    pub(super) fn new(prefix: &str) -> Subjects {
        Subjects { prefix: format!("{prefix}.").into() }
    }

    /// All there can be, as a stream asks for them.
    pub(super) fn all(&self) -> [String; 3] {
        ["b", "t.>", "u.>"].map(|rest| format!("{}{rest}", self.prefix))
    }

    /// Where what is for `target` is published.
    pub(super) fn of(&self, target: &Target) -> String {
        let (uid, topic) = match target {
            Target::Everyone => return format!("{}b", self.prefix),
            Target::Topic(topic) => (None, topic),
            Target::User { uid, topic } => (Some(uid), topic),
        };
        let mut subject = String::with_capacity(self.prefix.len() + topic.len() + uid.map_or(0, |uid| uid.len()) + 8);
        subject.push_str(&self.prefix);
        match uid {
            None => subject.push_str("t."),
            Some(uid) => {
                subject.push_str("u.");
                escape(uid, Dots::Escaped, &mut subject);
                if topic.is_empty() {
                    return subject;
                }
                subject.push('.');
            }
        }
        escape(topic, Dots::Kept, &mut subject);
        subject
    }

    /// Whom a message to `subject` is for.
    ///
    /// # Errors
    /// Nobody: it was published straight to NATS, to a subject that means nothing.
    pub(super) fn target(&self, subject: &str) -> Result<Target, SubjectError> {
        let target = self.read(subject)?;
        if self.of(&target) == subject { Ok(target) } else { Err(SubjectError::Spelling) }
    }

    fn read(&self, subject: &str) -> Result<Target, SubjectError> {
        let rest = subject.strip_prefix(&*self.prefix).ok_or(SubjectError::Foreign)?;
        if rest == "b" {
            return Ok(Target::Everyone);
        }
        if let Some(topic) = rest.strip_prefix("t.") {
            return Ok(Target::topic(unescape(topic)?));
        }
        let user = rest.strip_prefix("u.").ok_or(SubjectError::Foreign)?;
        let (uid, topic) = user.split_once('.').unwrap_or((user, ""));
        let uid = unescape(uid)?;
        if uid.is_empty() {
            return Err(SubjectError::Foreign);
        }
        Ok(Target::User { uid: uid.into(), topic: unescape(topic)?.into() })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Dots {
    Kept,
    Escaped,
}

fn escape(name: &str, dots: Dots, out: &mut String) {
    let bytes = name.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let is_parting = dots == Dots::Kept && at > 0 && at + 1 < bytes.len() && bytes[at - 1] != b'.';
        let is_plain = match byte {
            b'.' => is_parting,
            b'%' | b'*' | b'>' => false,
            byte => byte.is_ascii_graphic(),
        };
        if is_plain {
            out.push(char::from(*byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

fn unescape(text: &str) -> Result<String, SubjectError> {
    let mut name = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            name.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = digit().zip(digit()).ok_or(SubjectError::Escape)?;
        name.push((high << 4 | low) as u8);
    }
    if name.len() > TOPIC_BYTES_MAX {
        return Err(SubjectError::TooLong);
    }
    String::from_utf8(name).map_err(|_| SubjectError::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subjects() -> Subjects {
        Subjects::new("fanwire")
    }

    fn topic(name: &str) -> String {
        subjects().of(&Target::topic(name))
    }

    fn user(uid: &str, topic: &str) -> String {
        subjects().of(&Target::User { uid: uid.into(), topic: topic.into() })
    }

    #[test]
    fn ordinary_topics_stay_readable_and_their_dots_are_tokens() {
        assert_eq!(topic("news-1_a"), "fanwire.t.news-1_a");
        assert_eq!(topic("news.sport"), "fanwire.t.news.sport");
        assert_eq!(topic("chat:room/7"), "fanwire.t.chat:room/7");
        assert_eq!(topic(""), "fanwire.b");
        assert_eq!(user("7", "orders.new"), "fanwire.u.7.orders.new");
        assert_eq!(user("a.b", ""), "fanwire.u.a%2Eb");
    }

    #[test]
    fn what_cannot_stand_in_a_subject_is_escaped() {
        assert_eq!(topic("a b"), "fanwire.t.a%20b");
        assert_eq!(topic("*"), "fanwire.t.%2A");
        assert_eq!(topic(">"), "fanwire.t.%3E");
        assert_eq!(topic("100%"), "fanwire.t.100%25");
        assert_eq!(topic("."), "fanwire.t.%2E");
        assert_eq!(topic(".a..b."), "fanwire.t.%2Ea.%2Eb%2E");
        assert_eq!(topic("größe"), "fanwire.t.gr%C3%B6%C3%9Fe");
    }

    #[test]
    fn a_subject_that_means_nothing_says_why() {
        let error = |subject: &str| subjects().target(subject).unwrap_err();
        for foreign in ["other.t.a", "fanwire", "fanwire.x", "fanwire.t", "fanwire.u", "fanwire.u..a"] {
            assert_eq!(error(foreign), SubjectError::Foreign, "{foreign}");
        }
        for cut in ["fanwire.t.%", "fanwire.t.%4", "fanwire.t.%zz", "fanwire.u.%+1"] {
            assert_eq!(error(cut), SubjectError::Escape, "{cut}");
        }
        assert_eq!(error("fanwire.t.%FF"), SubjectError::NotUtf8);
        assert_eq!(error(&format!("fanwire.t.{}", "a".repeat(256))), SubjectError::TooLong);
    }

    #[test]
    fn a_target_has_one_subject_and_is_not_reached_by_another_spelling_of_it() {
        for other in ["t.%61dmin", "t.a%2ab", "t.a%2Eb", "t.a..b", "t.", "t.größe", "t.*", "u.7.", "u.%37", "u.7.a%62"]
        {
            assert_eq!(subjects().target(&format!("fanwire.{other}")), Err(SubjectError::Spelling), "{other}");
        }
    }

    /// Names up to the bound, most of them made of what is special here.
    fn name() -> impl Strategy<Value = String> {
        let special = prop::collection::vec(
            prop::sample::select(vec![".", "*", ">", "%", " ", "a", "2E", "\t", "ß", "\0"]),
            0..120,
        );
        prop_oneof![special.prop_map(|parts| parts.concat()), any::<String>()].prop_map(|name| {
            name.chars()
                .scan(0, |bytes, c| {
                    *bytes += c.len_utf8();
                    (*bytes <= 255).then_some(c)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_target_has_a_valid_subject_of_its_own(uid in name(), topic in name(), is_user: bool) {
            let target = if is_user { Target::user_or_topic(&uid, &topic) } else { Target::topic(topic) };
            let subject = subjects().of(&target);
            prop_assert_eq!(subjects().target(&subject), Ok(target), "{}", subject);
            prop_assert!(subject.split('.').all(|token| !token.is_empty()), "{}", subject);
            prop_assert!(subject.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>'), "{}", subject);
        }
    }
}
