//! What a logged-in user costs in memory: the control core's table and a shard's, with one private topic each. A process of its
//! own, so that nothing else's memory counts.

use fanwire::clock::Time;
use fanwire::encode::{EncodeSettings, Encoder};
use fanwire::ids::{ClientRef, Encoding, Generation, ShardId, Slot};
use fanwire::queue::{Answer, ToShard};
use fanwire::shard::users::Users;
use fanwire::topics::{MergeLimits, Outlet, Topics, TopicsLimits};

const LOGGED_IN: u32 = 100_000;
const BYTES_MAX: u64 = 200;

/// A shard that takes what it is told at once.
struct Shard(Users);

impl Outlet for Shard {
    fn shards(&self) -> usize {
        1
    }
    fn has_room(&self, _shard: ShardId, _items: usize, _bytes: usize) -> bool {
        true
    }
    fn push(&mut self, _shard: ShardId, message: ToShard) {
        let ToShard::Answer { client, answer } = message else { panic!("{message:?}") };
        let Answer::LoggedIn { uid, user } = *answer else { panic!("{answer:?}") };
        self.0.log_in(client.slot, uid, user);
        self.0.subscribe(client.slot, "orders");
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_hundred_thousand_users_cost_at_most_200_bytes_each() {
    let limits = TopicsLimits {
        topics_max: 10,
        topic_idle_ms: 1000,
        publish_wait_ms: 0,
        publish_waiting_max: 0,
        publish_waiting_bytes_max: 0,
        message_bytes_max: 1000,
        merge: MergeLimits::default(),
    };
    let encoder = Encoder::new(&EncodeSettings { deflate_level: 1, deflate_bytes_min: 100 });
    let mut topics = Topics::new(limits, encoder, 1, 7);
    let mut shard = Shard(Users::default());
    let before = resident_bytes();
    for slot in 0..LOGGED_IN {
        let client = ClientRef { slot: Slot(slot), generation: Generation(1) };
        let uid = format!("user-{slot:07}").into();
        topics.log_in(Time(1), ShardId(0), client, uid, Encoding(0), &mut shard);
    }
    let each = (resident_bytes() - before) / u64::from(LOGGED_IN);
    println!("{each} bytes a logged-in user with one private topic");
    assert_eq!((topics.users(), shard.0.logged_in(), shard.0.subscriptions()), (100_000, 100_000, 100_000));
    assert!((50..=BYTES_MAX).contains(&each), "{each} bytes each");
}
