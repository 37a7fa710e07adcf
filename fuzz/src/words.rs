//! Words on the wire and in a record: ids, reasons, event ids, sessions in JSON.

use tower_session_end::{EndReason, GenerationId, Session, SessionId};

use crate::{heads, input::Input};

/// Every word is read, or refused with a reason, and what was read is written as it was.
pub fn words(data: &[u8]) {
    let mut input = Input(data);
    let max_len = usize::from(input.byte()) * 8;
    let rest = input.0;

    let id = SessionId::from_bytes(rest, max_len);
    assert_eq!(id.as_ref().ok().map(ToString::to_string), heads::id(rest, max_len));
    if let Err(error) = &id {
        // The text itself may be meant to disturb a log.
        assert!(error.to_string().bytes().all(|b| (0x20..=0x7e).contains(&b)));
    }
    if let Ok(id) = &id {
        let shown = id.redacted().to_string();
        let prefix = shown.strip_suffix('…').expect("an ellipsis");
        assert!(id.as_str().starts_with(prefix) && prefix.len() <= 8 && prefix.len() <= id.as_str().len().div_ceil(3));
        assert_eq!(format!("{id:?}"), format!("SessionId({shown})"));
        assert_eq!(SessionId::with_max_len(id.as_str(), usize::MAX).as_ref(), Ok(id));
    }

    let text = String::from_utf8_lossy(rest);
    let reason: EndReason = text.parse().expect("never an error");
    assert!(reason == EndReason::Unknown || reason.as_str() == text);
    assert_eq!(reason.to_string().parse(), Ok(reason));
    if let Ok(event) = text.parse::<GenerationId>() {
        assert_eq!(event.to_string(), text);
    }
    if let Ok(reason) = serde_json::from_slice::<EndReason>(rest) {
        assert_eq!(
            serde_json::from_str::<EndReason>(&serde_json::to_string(&reason).expect("JSON")).ok(),
            Some(reason)
        );
    }
    if let Ok(session) = serde_json::from_slice::<Session>(rest) {
        assert!(heads::id(session.id.as_str().as_bytes(), usize::MAX).is_some());
        let json = serde_json::to_string(&session).expect("JSON");
        assert_eq!(serde_json::from_str::<Session>(&json).ok(), Some(session));
    }
    let session = Session::try_from(&*text);
    assert_eq!(session.map(|session| session.id.to_string()).ok(), heads::id(rest, 1024));
}
