//! The registry on a real redis-server: what it promises, and what becomes of it when the server or a holder fails.

mod adoptions;
mod conformance;
mod connections;
mod cost;
mod dead_letters;
mod deadlines;
mod evictions;
mod failovers;
mod leases;
mod notices;
mod outages;
mod process;
mod proxy;
mod recoveries;
mod support;
