//! Promises that hold for all inputs: what is generated here, and what fuzzing has found worth keeping.

#[path = "../fuzz/bodies.rs"]
mod bodies;
mod corpus;
mod egress;
mod websocket;
