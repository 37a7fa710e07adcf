//! The registry on a real redis-server: what it promises, and what becomes of it when the server or a holder fails.

mod conformance;
mod connections;
mod cost;
mod failovers;
mod leases;
mod outages;
mod proxy;
mod support;
