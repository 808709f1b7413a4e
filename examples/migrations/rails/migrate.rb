# migrate.rb [VERSION]: what "rails db:migrate VERSION=..." does, without the
# rest of Rails, in the database of libpq's environment variables.
require "logger"
require "active_record"

ActiveRecord::Base.establish_connection(adapter: "postgresql", database: ENV.fetch("PGDATABASE"))
ActiveRecord::MigrationContext.new(File.join(__dir__, "db/migrate"), ActiveRecord::SchemaMigration)
                              .migrate(ARGV[0]&.to_i)
