//! Real registries that are out of reach: what a request, a birth and a drain notice of it.

mod costs;
mod redis;
mod sqlite;
mod support;
