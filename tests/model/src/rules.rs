//! What holds for a pool, and the mistakes that can be planted in it.

use crate::pool::Time;

/// What becomes of a package whose reservation lapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lapse {
    /// It goes back to the pool.
    Return,
    /// It is burned; a late Spend is still recorded.
    Burn,
}

/// How much of the pool one adder may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FairShare {
    /// How many live reservations at once.
    pub max_open: usize,
    /// So many of the packages that can be issued go to newcomers only.
    pub spared: usize,
    /// An adder who has not drawn a one-time package for this long is a newcomer.
    pub newcomer_after: Time,
}

/// The limits of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules {
    /// What becomes of lapsed reservations.
    pub lapse: Lapse,
    /// None: adders may take all there is.
    pub fair_share: Option<FairShare>,
    /// A package with less lifetime left is not issued.
    pub min_remaining: Time,
    /// At most so many live packages of a cipher suite.
    pub hard_cap: usize,
    /// How long a ref stays known after its not_after, and a grant after its end.
    pub retention: Time,
    /// A mistake to make.
    pub bug: Option<Bug>,
}

impl Rules {
    /// Whether this mistake is to be made.
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// Mistakes that a pool could make. The checks are checked by them: each is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bug {
    /// A Reserve takes a package that somebody holds.
    TakesWhatIsHeld,
    /// A reservation lapses before it expires.
    LapsesTooEarly,
    /// A Spend does not ask whether the package was issued to somebody else since.
    SpendsWhatWasIssuedSince,
    /// A Release makes a spent package available again.
    ReleasesWhatWasSpent,
    /// A repeated Spend is told that the reservation is lost.
    ForgetsWhoSpent,
    /// A repeated Reserve gets another package.
    IgnoresRequestId,
    /// An upload of a ref that ended stores it again.
    UploadsWhatEnded,
    /// A revocation takes packages from those who hold them.
    RevokesWhatIsHeld,
    /// What was revoked while it was held goes back to the pool when the reservation lapses.
    ForgetsRevocation,
    /// What burned is issued again.
    ReturnsWhatBurned,
    /// Packages that came back are issued before those that were never issued.
    IssuesReturnedFirst,
    /// The package that expires last is issued first.
    IssuesYoungestFirst,
    /// The last resort package is issued while there are others.
    IssuesLastResortFirst,
    /// A package is issued whose lifetime is nearly over.
    IssuesWhatExpires,
    /// The share of an adder is not counted.
    IgnoresFairShare,
    /// Adders who have drawn before get what is kept for newcomers.
    IgnoresNewcomers,
    /// The sweeper leaves lapsed reservations as they are.
    NeverLapses,
    /// What lapses goes back to the pool where it is to burn.
    LapsesWhatIsToBurn,
    /// The sweeper makes spent packages available again.
    SweepsBackWhatWasSpent,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::TakesWhatIsHeld,
        Self::LapsesTooEarly,
        Self::SpendsWhatWasIssuedSince,
        Self::ReleasesWhatWasSpent,
        Self::ForgetsWhoSpent,
        Self::IgnoresRequestId,
        Self::UploadsWhatEnded,
        Self::RevokesWhatIsHeld,
        Self::ForgetsRevocation,
        Self::ReturnsWhatBurned,
        Self::IssuesReturnedFirst,
        Self::IssuesYoungestFirst,
        Self::IssuesLastResortFirst,
        Self::IssuesWhatExpires,
        Self::IgnoresFairShare,
        Self::IgnoresNewcomers,
        Self::NeverLapses,
        Self::LapsesWhatIsToBurn,
        Self::SweepsBackWhatWasSpent,
    ];
}
