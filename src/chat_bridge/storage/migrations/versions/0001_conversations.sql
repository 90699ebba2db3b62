-- The data model. `conversation_id` leads every key, so that all rows of a conversation live together.

-- A session is one stretch of a conversation: what the agent remembers. One is active at a time.
-- Nothing that a message changes is indexed, so that an update stays in its page and touches no index.
create table sessions (
  conversation_id uuid not null,
  id uuid not null,
  created_at timestamptz not null default clock_timestamp(),
  last_activity timestamptz not null default clock_timestamp(),
  pending_since timestamptz,               -- set while a message waits for its answer; unindexed, see `waiting`
  error_told_at timestamptz,               -- when the user was last told of a failure
  message_count bigint not null default 0,
  next_seq bigint not null default 1,      -- given out under this row's lock
  last_inbound_seq bigint not null default 0, -- newest message that wants an answer
  answered_seq bigint not null default 0,  -- every message up to here has its final state
  parent_session_id uuid,
  status text not null default 'active' check (status in ('active', 'closed', 'archived')),
  mode text not null default 'agent' check (mode in ('agent', 'human')),
  platform text not null,
  account text not null,
  platform_conversation_id text not null,
  thread text not null default '',
  user_id text,
  metadata jsonb not null default '{}',
  primary key (conversation_id, id)
) with (fillfactor = 70);

create unique index sessions_active on sessions (conversation_id) where status = 'active';

create index sessions_platform_conversation on sessions (platform, platform_conversation_id);

create index sessions_id on sessions (id);

-- Sessions in which a message waits for its answer, for the sweep; empty when nothing waits. A partial index on
-- sessions would say the same, but every message would then rewrite all of that table's index entries.
create table waiting (
  conversation_id uuid not null,
  session_id uuid not null,
  primary key (conversation_id, session_id)
);

-- Fixed-width columns first: no padding. Absent values are null, not '{}': they cost a bit.
create table messages (
  conversation_id uuid not null,
  seq bigint not null,
  created_at timestamptz not null default clock_timestamp(),
  sent_at timestamptz,                     -- the platform's clock; never decides order
  id uuid not null,
  session_id uuid not null,
  turn_id uuid,                            -- of a reply: the turn that wrote it
  direction text not null check (direction in ('inbound', 'outbound')),
  status text not null check (status in ('accepted', 'skipped', 'failed', 'cancelled', 'stored')),
  content_type text not null default 'text' check (content_type in ('text', 'command', 'notice', 'event')),
  content_text text not null default '',
  event_key text,                          -- of an inbound one: unique per delivery; never changes
  sender_id text,
  platform_message_id text,
  agent_request_id text,
  attachments jsonb,
  metadata jsonb,
  primary key (conversation_id, seq)
);

create unique index messages_event on messages (conversation_id, event_key);

-- Ids are uuid v7 and rows are appended, so a block range index finds one id at almost no write cost.
create index messages_id on messages using brin (id) with (pages_per_range = 16, autosummarize = on);

-- The running row is lease, fence and history in one: the unique index allows one running turn a conversation.
create table turns (
  conversation_id uuid not null,
  id uuid not null,
  session_id uuid not null,
  first_seq bigint not null,
  last_seq bigint not null,
  lease_until timestamptz not null,
  started_at timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  status text not null default 'running' check (status in ('running', 'done', 'failed', 'cancelled', 'superseded')),
  owner text not null,
  agent text not null,
  outcome text,
  agent_request_id text,
  error text,
  usage jsonb,
  primary key (conversation_id, id)
) with (fillfactor = 80);

create unique index turns_running on turns (conversation_id) where status = 'running';

-- The outbox: one row for each part of a reply.
create table deliveries (
  conversation_id uuid not null,
  seq bigint not null,
  part smallint not null,
  attempts smallint not null default 0,
  next_attempt_at timestamptz not null default clock_timestamp(),
  sent_at timestamptz,
  idempotency_key uuid not null,           -- the same at every try
  status text not null check (status in ('pending', 'sending', 'sent', 'unknown', 'failed')),
  platform_message_id text,
  error text,
  primary key (conversation_id, seq, part)
) with (fillfactor = 80);

create index deliveries_due on deliveries (next_attempt_at) where status in ('pending', 'sending');

create table users (
  platform text not null,
  account text not null,
  platform_user_id text not null,
  display_name text,
  username text,
  locale text,
  aliases jsonb not null default '[]',
  metadata jsonb not null default '{}',
  first_seen timestamptz not null default clock_timestamp(),
  last_seen timestamptz not null default clock_timestamp(),
  primary key (platform, account, platform_user_id)
);
