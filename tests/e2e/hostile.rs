//! Clients and publishers that mean harm: each costs itself, within a bound, and the others notice nothing.

use crate::client::{Client, PONG, frame};
use crate::gateway::{Gateway, wait_until};

#[test]
fn a_client_that_sends_something_and_resets_the_connection_frees_its_slot() {
    let gateway = Gateway::start(&[("shards.count", "1")]);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    let rude: Vec<Client> = (0..20).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    // What nobody reads makes closing a reset, and the shard finds that together with the last bytes.
    gateway.push("t", "unread");
    assert_eq!(bystander.text(), "unread");
    gateway.stall(0, 500);
    for mut client in rude {
        client.write(&frame(0x80 | PONG, b"unasked"));
    }
    wait_until("every slot but one is free", || gateway.metrics().connections() == 1.0);
    assert_eq!(gateway.metrics().closes("heartbeat"), 0.0);
    bystander.ping();
}
