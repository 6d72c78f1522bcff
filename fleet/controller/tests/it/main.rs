//! The controller as its users meet it: devices over a real broker, people and programs over HTTP, and
//! the command line.

mod access;
mod api;
mod browser;
mod command;
mod forecast;
mod http;
mod identity;
mod ingest;
mod openapi;
mod page;
mod push;
mod rollout;
mod served;
mod several;
mod start;
mod world;
