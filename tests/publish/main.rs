//! The publishing side over real sockets: gRPC and HTTP clients, the control core in its own runtime (tokio-uring's), and
//! behind it shards that only hold their queues. What `topics` decides is played by [`fake::FakeTopics`].

mod control;
mod fake;
mod grpc;
mod harness;
mod http;
mod server;
mod speed;
