//! The agent as users meet it: the program itself, with a real broker and a real controller.

mod cameras;
mod context;
mod demo;
mod device;
mod enrol;
mod fleet;
mod judge;
mod kill;
mod model;
mod offload;
mod pages;
mod renewal;
mod service;
mod swap;
mod tools;
mod trace;
