//! A core's subscribers and what they are owed: decisions and data, no I/O, no clock.

pub mod client_address;
pub mod connection;
pub mod egress;
pub mod interests;
pub mod lane;
pub mod pages;
pub mod pool;
pub mod proxy_protocol;
pub mod settings;
pub mod subscriptions;
pub mod users;
pub mod wheel;
