//! The registry on a real PostgreSQL server: what it promises, and what becomes of it when the server or a holder fails.

mod commits;
mod conformance;
mod costs;
mod counters;
mod full_disk;
mod hooks;
mod interleavings;
mod leases;
mod outages;
mod process;
mod proxy;
mod standby;
mod starts;
mod support;
mod views;
