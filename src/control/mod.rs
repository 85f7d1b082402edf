//! The control socket: JSON-RPC 2.0, one object per line, over a Unix stream socket. It turns lines into checked calls
//! for the controller and its answers back into lines; it decides nothing about volumes and never makes the controller
//! wait for a client.

pub mod client;
mod connection;
mod lines;
pub mod peer;
pub mod rpc;
pub mod server;
mod socket;
