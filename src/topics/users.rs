//! Which users a shard has: a key, a count and the encodings wanted in 16 bytes, so that a hundred thousand uids cost little.
//!
//! Counts, not uids: each answer "logged in" that goes to a shard adds one, each "logged out" that comes back takes one away. So
//! answers and farewells may cross on their way, and two uids with one key (which the shard tells apart) share an entry.

use crate::ids::{Encoding, UserKey};
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// The key of a uid.
pub(super) fn key(hash: &RandomState, uid: &str) -> UserKey {
    UserKey(hash.hash_one(uid))
}

/// The users of one shard.
#[derive(Default)]
pub(super) struct UserTable(HashMap<u64, Entry, BuildHasherDefault<Keyed>>);

struct Entry {
    /// Answers out, less farewells heard.
    logins: u32,
    /// A bit for each encoding that was asked for since the entry is there.
    encodings: u16,
}

const _: () = assert!(Encoding::COUNT_MAX <= u16::BITS as usize);

impl UserTable {
    /// A client of the shard is told that it is this user.
    pub(super) fn log_in(&mut self, user: UserKey, encoding: Encoding) {
        let entry = self.0.entry(user.0).or_insert(Entry { logins: 0, encodings: 0 });
        entry.logins += 1;
        entry.encodings |= 1 << encoding.0;
    }

    /// One such client is this user no longer.
    ///
    /// # Panics
    /// If there were fewer: the shard says it once for each answer.
    pub(super) fn log_out(&mut self, user: UserKey) {
        let entry = self.0.get_mut(&user.0).expect("a farewell follows its answer");
        entry.logins -= 1;
        if entry.logins == 0 {
            self.0.remove(&user.0);
            if self.0.capacity() > 4 * self.0.len().max(1024) {
                self.0.shrink_to(2 * self.0.len());
            }
        }
    }

    /// The encodings in which the shard takes what goes to `user`.
    pub(super) fn encodings(&self, user: UserKey) -> impl Iterator<Item = Encoding> + use<> {
        let bits = self.0.get(&user.0).map_or(0, |entry| entry.encodings);
        (0..Encoding::COUNT_MAX as u8).filter(move |i| bits & 1 << i != 0).map(Encoding)
    }

    /// Users, by key.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct Keyed(u64);

impl Hasher for Keyed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only u64 keys are hashed")
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_there_until_the_last_farewell() {
        let mut users = UserTable::default();
        let (user, plain, deflated) = (UserKey(7), Encoding(0), Encoding(1));
        let encodings = |users: &UserTable| users.encodings(user).collect::<Vec<_>>();
        users.log_in(user, deflated);
        users.log_in(user, plain);
        assert_eq!(encodings(&users), [plain, deflated]);
        users.log_out(user);
        assert_eq!(encodings(&users), [plain, deflated], "which of the two left, nobody said");
        users.log_out(user);
        assert_eq!((encodings(&users), users.len()), (vec![], 0));
        users.log_in(user, plain);
        assert_eq!(encodings(&users), [plain]);
    }

    #[test]
    fn an_entry_takes_sixteen_bytes() {
        assert_eq!(size_of::<(u64, Entry)>(), 16);
    }
}
