-- The oldest program (by the newest revision it knows) that works on this schema, told to programs that are older than it.
create table schema_compatibility (oldest_code text not null);

insert into schema_compatibility values ('0002');

-- `attempts` counts every try and fences its result; `failures` only those that count against the limit: not waiting
-- because the platform asks for it.
alter table deliveries
  add column failures smallint not null default 0,
  add column give_up_at timestamptz not null default now() + interval '24 hours',
  drop constraint deliveries_status_check,
  add constraint deliveries_status_check
    check (status in ('pending', 'sending', 'sent', 'unknown', 'failed', 'purged')) not valid;

-- Dead letters: replies that were given up, and messages that got no answer. Empty while all is well.
create index deliveries_dead on deliveries (next_attempt_at) where status in ('unknown', 'failed');

create index messages_failed on messages (created_at) where status = 'failed';
