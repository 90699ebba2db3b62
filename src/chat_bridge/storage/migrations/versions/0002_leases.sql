-- Work that one process of all does at a time, such as asking a platform for its events.
create table leases (
  name text primary key,
  owner text not null,
  lease_until timestamptz not null
);

-- A platform that refuses us for weeks is asked more than 32767 times.
alter table deliveries alter column attempts type integer;

-- Conversations that the platform gave a new id: whatever comes under the old one belongs there.
create table moves (
  conversation_id uuid primary key,        -- the old one
  platform_conversation_id text not null   -- the platform's new id
);
