//! The host, with the layer outside or inside of `tower-sessions`, over real sockets and with a browser's cookie jar.

mod cookie_formats;
mod orders;
mod process;
mod recorded;
mod restart;
mod sessions;
mod support;
