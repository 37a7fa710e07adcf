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
    /// routed through a cluster like the call itself. The first argument is how all keys begin.
    pub(super) async fn run<C: ConnectionLike + ?Sized>(
        &self,
        connection: &mut C,
        args: &[String],
    ) -> RedisResult<Value> {
        let by_hash = command("EVALSHA", &self.sha1, args);
        match connection.req_packed_command(&by_hash).await.and_then(Value::extract_error) {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let by_text = command("EVAL", self.code, args);
                connection.req_packed_command(&by_text).await.and_then(Value::extract_error)
            }
            answer => answer,
        }
    }
}

/// The scripts make the names of their keys themselves. A cluster finds the slot by the two that are declared. The second one
/// never exists: so while the slot moves to another node, and the keys are on either of them, both refuse the script.
fn command(name: &str, script: &str, args: &[String]) -> Cmd {
    let root = args.first().map(String::as_str).unwrap_or_default();
    let mut command = redis::cmd(name);
    command.arg(script).arg(2).arg(format!("{root}incarnation")).arg(format!("{root}never")).arg(args);
    command
}
