//! The controller as its users meet it: devices over a real broker, people and programs over HTTP, and
//! the command line.

mod api;
mod command;
mod http;
mod ingest;
mod page;
mod push;
mod rollout;
mod start;
mod world;
