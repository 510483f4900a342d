//! Several machines, as processes on one: real etcd, real gateways, and a network between them that fails when told to.

#[allow(dead_code)] // Shared with the end-to-end tests, which use all of it.
#[path = "../e2e/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../e2e/gateway.rs"]
mod gateway;
#[allow(dead_code)]
#[path = "../e2e/http.rs"]
mod http;
#[path = "../e2e/killed.rs"]
mod killed;
#[allow(dead_code)]
#[path = "../e2e/publisher.rs"]
mod publisher;

mod audience;
mod background;
mod etcd;
mod faults;
mod fleet;
mod lab;
mod load;
mod nats;
mod node;
mod record;
mod trouble;

mod balancer;
mod chaos;
mod drain;
mod gpush;
mod guarded;
mod jetstream;
mod members;
mod namespaces;
mod relay;
mod roles;
mod rolling;
