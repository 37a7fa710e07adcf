//! The host, with the layer around it or inside of it, over real sockets and with a browser's cookie jar.

mod orders;
mod process;
mod recorded;
mod restart;
mod seals;
mod sessions;
mod support;
