-- Conversations on legal hold: nothing of them is deleted until somebody lifts it.
create table holds (
  conversation_id uuid primary key,
  created_at timestamptz not null default clock_timestamp(),
  reason text not null
);

-- What was erased on somebody's request. Once it is finished it tells nothing of whom: `target` is null then, and the
-- receipt holds counts. What a restored backup has to lose again is told by the ledger in object storage.
create table erasures (
  id uuid primary key,
  created_at timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  kind text not null check (kind in ('user', 'conversation', 'session')),
  target jsonb,
  receipt jsonb not null default '{}'
);

create index erasures_unfinished on erasures (created_at) where finished_at is null;
