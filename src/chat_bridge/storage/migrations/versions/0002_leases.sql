-- Work that one process of all does at a time, such as asking a platform for its events.
create table leases (
  name text primary key,
  owner text not null,
  lease_until timestamptz not null
);
