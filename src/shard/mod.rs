//! A core's subscribers and what they are owed: decisions and data, no I/O, no clock.

pub mod connection;
pub mod egress;
pub mod interests;
pub mod pool;
pub mod settings;
pub mod users;
pub mod wheel;
