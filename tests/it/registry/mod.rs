//! What the handle does with a registry: order with hooks, recovery, replicas, degrading.

#[cfg(feature = "registry-conformance")]
mod conformance;
mod edges;
mod failing;
mod leases;
mod outages;
mod records;
mod redelivery;
mod replicas;
mod support;
mod transactions;
