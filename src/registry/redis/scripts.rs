//! The Lua scripts and their execution.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value, aio::ConnectionLike};

/// A script of these parts.
macro_rules! script {
    ($($file:literal),+) => {{
        const CODE: &str = concat!($(include_str!(concat!("lua/", $file, ".lua"))),+);
        RedisScript { code: CODE, sha1: Script::new(CODE).get_hash().to_owned() }
    }};
}

type LazyScript = LazyLock<RedisScript>;

pub(super) static ENTER: LazyScript = LazyLock::new(|| script!("keys", "lease", "layout", "enter"));
pub(super) static HEARTBEAT: LazyScript = LazyLock::new(|| script!("keys", "lease", "heartbeat"));
pub(super) static APPLY: LazyScript = LazyLock::new(|| script!("keys", "lease", "records", "apply"));
pub(super) static ADOPT: LazyScript = LazyLock::new(|| script!("keys", "lease", "adopt"));
pub(super) static READ_ORPHANS: LazyScript = LazyLock::new(|| script!("keys", "lease", "records", "read_orphans"));
pub(super) static RELEASE_LEASE: LazyScript = LazyLock::new(|| script!("keys", "lease", "release_lease"));
pub(super) static DEAD_LETTERS: LazyScript = LazyLock::new(|| script!("keys", "layout", "operator", "dead_letters"));
pub(super) static REDELIVER: LazyScript = LazyLock::new(|| script!("keys", "layout", "operator", "redeliver"));

#[derive(Debug)]
pub(super) struct RedisScript {
    code: &'static str,
    sha1: String,
}

impl RedisScript {
    /// Runs the script by its hash, or by its text if the server does not know it yet. Unlike `SCRIPT LOAD`, `EVAL` is
    /// routed through a cluster like the call itself. The key is there for a cluster only.
    pub(super) async fn run<C: ConnectionLike + ?Sized>(
        &self,
        connection: &mut C,
        key: &str,
        args: &[String],
    ) -> RedisResult<Value> {
        let by_hash = command("EVALSHA", &self.sha1, key, args);
        match connection.req_packed_command(&by_hash).await.and_then(Value::extract_error) {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let by_text = command("EVAL", self.code, key, args);
                connection.req_packed_command(&by_text).await.and_then(Value::extract_error)
            }
            answer => answer,
        }
    }
}

fn command(name: &str, script: &str, key: &str, args: &[String]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(script).arg(1).arg(key).arg(args);
    command
}
