//! The name of this process for operators.

/// The name of this process in the operator views.
pub(super) fn process_label() -> String {
    let program = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok());
    let on = host.map(|host| format!(" on {}", host.trim())).unwrap_or_default();
    format!("{} (process {}{on})", program.unwrap_or_default(), std::process::id())
}
