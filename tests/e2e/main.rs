//! End to end: the real binary on a real ring, over real sockets, against clients that we did not write and clients that
//! misbehave. Every test starts gateways of its own on free ports.

mod client;
mod gateway;
mod http;
mod killed;
mod publisher;

mod admin;
mod ancestors;
mod centrifugo;
mod delivery;
mod demo;
mod denied;
mod doctor;
mod drain;
mod edges;
mod frames;
mod gopush;
mod gpush;
mod handshake;
mod hostile;
mod limits;
mod load;
mod login;
mod operating;
mod proxies;
mod pub_command;
mod publish;
mod readme;
mod slow;
mod startup;
