//! The values of labels. Each is a row of `docs/metrics.md`.

/// A value of a label whose values are all known.
pub trait LabelValue: Copy {
    /// All values, in order.
    const VALUES: &'static [&'static str];

    /// Which of them this is.
    fn place(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$inner:meta])* $value:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[allow(missing_docs)] // what each means is in docs/metrics.md
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$inner])* $value,)+ }

        impl $name {
            /// All of them.
            pub const ALL: [Self; Self::VALUES.len()] = [$(Self::$value,)+];

            /// As the label says it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }

        impl LabelValue for $name {
            const VALUES: &'static [&'static str] = &[$($text,)+];

            fn place(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// Why a token was refused.
    TokenFailure {
        Missing = "missing",
        Malformed = "malformed",
        UnknownKey = "unknown_key",
        BadSignature = "bad_signature",
        WrongAudience = "wrong_audience",
        WrongIssuer = "wrong_issuer",
        NotYetValid = "not_yet_valid",
        Expired = "expired",
        BadClaim = "bad_claim",
        KeysUnavailable = "keys_unavailable",
    }
    /// Which limit refused a call as RATE_LIMITED.
    RateLimit {
        Caller = "caller",
        CallerTarget = "caller_target",
        Owner = "owner",
        Requests = "requests",
        Streams = "streams",
    }
    /// Why a call was turned away as OVERLOADED.
    Shed {
        Places = "places",
        Queue = "queue",
        Database = "database",
    }
    /// Why a connection was refused.
    RefusedConnection {
        Full = "full",
        Handshake = "handshake",
    }
    /// What a Reserve handed out.
    Issued {
        OneTime = "one_time",
        Returned = "returned",
        LastResort = "last_resort",
    }
    /// Why a Reserve got nothing from a client.
    NotReserved {
        PoolExhausted = "POOL_EXHAUSTED",
        NoCompatibleKeyPackage = "NO_COMPATIBLE_KEY_PACKAGE",
        Quota = "QUOTA",
    }
    /// How a reservation was settled.
    Settlement {
        Spent = "spent",
        Released = "released",
    }
    /// What became of an uploaded package.
    Upload {
        Stored = "stored",
        AlreadyPresent = "already_present",
        Rejected = "rejected",
    }
    /// The pools of connections to Postgres.
    Connections {
        Adders = "adders",
        Owners = "owners",
        Health = "health",
    }
    /// What the sweeper ended.
    Swept {
        Lapsed = "lapsed",
        Expired = "expired",
        Expiring = "expiring",
        Forgotten = "forgotten",
        ForgottenDraws = "forgotten_draws",
    }
    /// How a run of background work ended.
    Outcome {
        Ok = "ok",
        Failed = "failed",
    }
}
